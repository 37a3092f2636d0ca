package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

// newDatastoreCompactCommand returns the verb that discards history.
func newDatastoreCompactCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "compact [REVISION]",
		Short: "Give up the history of the cluster's state",
		Long: `Give up the versions of objects before REVISION, or before now. The apiserver does so every five minutes for
what is older than that: this is for a machine that is short of room now. Clients that read a long list in pages
at that moment have to begin again. The space is used again; the file does not become shorter.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return oneArg("a revision")(cmd, args)
		},
	}
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "datastore compact")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		revision := int64(0)
		if len(args) > 0 {
			if revision, err = parseRevision(args[0]); err != nil {
				return err
			}
		}
		return m.WithStore(cmd.Context(), func(conn *grpc.ClientConn) error {
			return compact(cmd, e, conn, revision, output.json())
		})
	}
	return cmd
}

func compact(cmd *cobra.Command, e *env, conn *grpc.ClientConn, revision int64, asJSON bool) error {
	client := etcdserverpb.NewKVClient(conn)
	if revision == 0 {
		now, err := client.Range(cmd.Context(), &etcdserverpb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: 1, KeysOnly: true})
		if err != nil {
			return storeError("read", err)
		}
		revision = now.Header.Revision
	}
	_, err := client.Compact(cmd.Context(), &etcdserverpb.CompactionRequest{Revision: revision, Physical: true})
	switch {
	case errors.Is(rpctypes.Error(err), rpctypes.ErrCompacted):
		return fmt.Errorf("revision %d has been compacted already", revision)
	case errors.Is(rpctypes.Error(err), rpctypes.ErrFutureRev):
		return fmt.Errorf("there is no revision %d yet; \"mote datastore status\" says which is the last", revision)
	case err != nil:
		return storeError("compact", err)
	}
	if asJSON {
		return printJSON(e.stdout, map[string]int64{"compacted": revision})
	}
	_, err = fmt.Fprintf(e.stdout, "compacted up to revision %d\n", revision)
	return err
}
