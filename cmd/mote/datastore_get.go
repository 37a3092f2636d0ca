package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// getOptions are the flags of datastore get.
type getOptions struct {
	prefix, keysOnly bool
	revision         int64
}

// newDatastoreGetCommand returns the verb that reads keys as they are stored.
func newDatastoreGetCommand(e *env) *cobra.Command {
	var o getOptions
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print what is stored under a key",
		Long: `Print the value of KEY as it is stored: most objects as protobuf behind the bytes "k8s\0", those of custom resources
as JSON, Secrets encrypted. With --prefix, each key that begins with KEY is printed on a line, and then its value.
-o json tells revisions, version and lease too; values are in base64.`,
		Example: `  mote datastore get --prefix --keys-only /registry/deployments/
  mote datastore get /registry/namespaces/default -o json`,
		Args: oneArg("a key"),
	}
	cmd.Flags().BoolVar(&o.prefix, "prefix", false, "all keys that begin with KEY")
	cmd.Flags().BoolVar(&o.keysOnly, "keys-only", false, "print keys without values")
	cmd.Flags().Int64Var(&o.revision, "rev", 0, "as it was at this `revision` (default: now)")
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "datastore get")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		return m.WithStore(cmd.Context(), func(conn *grpc.ClientConn) error {
			return get(cmd.Context(), e.stdout, conn, args[0], o, output.json())
		})
	}
	return cmd
}

// storedKey is a key in JSON output.
type storedKey struct {
	Key            string `json:"key"`
	CreateRevision int64  `json:"createRevision"`
	ModRevision    int64  `json:"modRevision"`
	Version        int64  `json:"version"`
	Lease          int64  `json:"lease,omitempty"`
	Size           int    `json:"size"`
	Value          []byte `json:"value,omitempty"` // base64
}

// pageSize is the number of keys that one request reads, so that printing a large store takes
// little memory.
const pageSize = 500

func get(ctx context.Context, w io.Writer, conn *grpc.ClientConn, key string, o getOptions, asJSON bool) error {
	list := []storedKey{}
	err := eachKey(ctx, etcdserverpb.NewKVClient(conn), key, o, func(kv *mvccpb.KeyValue) error {
		switch {
		case asJSON:
			list = append(list, storedKey{
				string(kv.Key), kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease, len(kv.Value), kv.Value,
			})
			return nil
		case o.keysOnly:
			_, err := fmt.Fprintf(w, "%s\n", kv.Key)
			return err
		case o.prefix:
			_, err := fmt.Fprintf(w, "%s\n%s\n", kv.Key, kv.Value)
			return err
		}
		_, err := w.Write(kv.Value)
		return err
	})
	switch {
	case err != nil:
		return err
	case asJSON && o.prefix:
		return printJSON(w, list)
	case asJSON:
		return printJSON(w, list[0])
	}
	return nil
}

// eachKey calls fn with each stored key. It reads page by page, all at the revision of the first
// page.
func eachKey(ctx context.Context, client etcdserverpb.KVClient, key string, o getOptions, fn func(*mvccpb.KeyValue) error) error {
	req := &etcdserverpb.RangeRequest{Key: []byte(key), KeysOnly: o.keysOnly, Revision: o.revision}
	if o.prefix {
		req.RangeEnd, req.Limit = prefixEnd(key), pageSize // kine accepts no limit with a single key
	}
	for {
		resp, err := client.Range(ctx, req)
		if err != nil {
			return getError(err, o.revision)
		}
		if len(resp.Kvs) == 0 && !o.prefix {
			return fmt.Errorf("there is no key %q; --prefix lists those that begin with it", key)
		}
		for _, kv := range resp.Kvs {
			if err := fn(kv); err != nil {
				return fmt.Errorf("print %s: %w", kv.Key, err)
			}
		}
		if !resp.More {
			return nil
		}
		req.Revision = resp.Header.Revision
		req.Key = append(resp.Kvs[len(resp.Kvs)-1].Key, 0)
	}
}

// prefixEnd returns the end of the range of keys that begin with prefix.
func prefixEnd(prefix string) []byte {
	end := []byte(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0} // the range has no end
}

func getError(err error, revision int64) error {
	switch {
	case errors.Is(rpctypes.Error(err), rpctypes.ErrCompacted):
		return fmt.Errorf("the history of revision %d has been compacted away; \"mote datastore status\" says up to where", revision)
	case errors.Is(rpctypes.Error(err), rpctypes.ErrFutureRev):
		return fmt.Errorf("there is no revision %d yet; \"mote datastore status\" says which is the last", revision)
	}
	return storeError("read", err)
}

// storeError renders an error of the store's protocol in one line.
func storeError(what string, err error) error {
	return fmt.Errorf("%s datastore: %s", what, status.Convert(err).Message())
}
