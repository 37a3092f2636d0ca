package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/machine"
	"github.com/mote-k8s/mote/machine/settings"
)

// migrated is the verb's result in JSON output.
type migrated struct {
	Keys     int64  `json:"keys"`
	Revision int64  `json:"revision"`
	Target   string `json:"target"`
	// Running is true when the source's server continued to write.
	Running bool `json:"running"`
}

// newDatastoreMigrateCommand returns the verb that copies the cluster's state into another engine.
func newDatastoreMigrateCommand(e *env) *cobra.Command {
	to := datastore.Config{}
	cmd := &cobra.Command{
		Use:   "migrate --to ENDPOINT",
		Short: "Copy the cluster's state into another engine",
		Long: `Copy all that the cluster keeps into another engine, compare it, and leave the store as it is. ENDPOINT has the forms of
--datastore-endpoint; "-" reads it from standard input, so that a password in it is seen by nobody. It must be empty.
What an interrupted migration left is removed by the next one; no server runs on it.

To move a cluster: stop mote, migrate, set datastore-endpoint, start mote. While mote runs, a copy of one moment is made: what
is written later is not in it.

Objects get new resource versions, above all that the old store gave: clients list once more, and go on.`,
		Args: noArgs,
	}
	cmd.Flags().StringVar(&to.Endpoint, "to", "", "`endpoint` of the empty store to fill; - reads it from standard input")
	cmd.Flags().StringVar(&to.CAFile, "to-cafile", "", "`path` of the certificate authority of its server")
	cmd.Flags().StringVar(&to.CertFile, "to-certfile", "", "`path` of our certificate for its server")
	cmd.Flags().StringVar(&to.KeyFile, "to-keyfile", "", "`path` of the key of to-certfile")
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "datastore")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot("datastore migrate"); err != nil {
			return err
		}
		to := to
		if to.Endpoint, err = readEndpoint(e, to.Endpoint); err != nil {
			return err
		}
		done, err := migrate(cmd.Context(), e, m, to)
		if err != nil {
			return machine.DiskHint(err)
		}
		if output.json() {
			return printJSON(e.stdout, done)
		}
		sayMigrated(e, m, done)
		return nil
	}
	return cmd
}

func readEndpoint(e *env, text string) (string, error) {
	if text == "-" {
		line, err := bufio.NewReader(e.stdin).ReadString('\n')
		if text = strings.TrimSpace(line); text == "" {
			return "", errors.Join(errors.New("standard input has no endpoint"), err)
		}
	}
	if text == "" {
		return "", errors.New("migrate needs --to ENDPOINT; see \"mote datastore migrate --help\"")
	}
	return text, nil
}

// migrate copies the store of the running mote, or the files of a stopped one.
func migrate(ctx context.Context, e *env, m *machine.Machine, to datastore.Config) (done migrated, err error) {
	dir, err := os.MkdirTemp("", "mote-migrate-")
	if err != nil {
		return done, fmt.Errorf("make a folder for the target's socket: %w", err)
	}
	defer os.RemoveAll(dir)
	to.Path, to.Socket = m.StorePath(), filepath.Join(dir, "target.sock")
	to.Volatile = []string{} // a copy has no keys that are written again soon
	target, err := datastore.New(to)
	if err != nil {
		return done, err
	}
	source, err := m.OpenStore(m.DatastoreSocket())
	if err != nil {
		return done, err
	}
	if source.String() == target.String() {
		return done, fmt.Errorf("%s is the cluster's store itself; name another with --to", target)
	}
	pid, err := m.Holder()
	if err != nil {
		return done, err
	}
	done.Running = pid != 0
	bar := newBar(e)
	defer bar.end()
	err = m.WithStore(ctx, func(source *grpc.ClientConn) error {
		if done.Revision, _, err = datastore.Survey(ctx, source); err != nil {
			return err
		}
		to.Above = done.Revision
		target, err := datastore.New(to)
		if err != nil {
			return err
		}
		done.Target = target.String()
		return machine.WithServed(ctx, target, func(conn *grpc.ClientConn) error {
			m := datastore.Migration{Source: source, Target: conn, Revision: done.Revision, Progress: bar.show}
			done.Keys, err = m.Run(ctx)
			return err
		})
	})
	if errors.Is(err, datastore.ErrNotEmpty) {
		return done, fmt.Errorf("cannot migrate to %s: %w; empty it, or name another database or file", done.Target, err)
	}
	return done, err
}

func sayMigrated(e *env, m *machine.Machine, done migrated) {
	fmt.Fprintf(e.stdout, "%d keys of revision %d are in %s\n", done.Keys, done.Revision, done.Target)
	if done.Running {
		fmt.Fprintf(e.stderr, "mote is running: what it wrote since is not in the copy. To move the cluster, stop it (mote stop), "+
			"empty the target and migrate again.\n")
		return
	}
	fmt.Fprintf(e.stderr, "Next: set datastore-endpoint (and its TLS files) in %s, then start mote. The old store is untouched; "+
		"remove it from %s when you are content.\n", settings.DefaultConfig, m.StoreDir())
}
