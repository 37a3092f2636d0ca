package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/machine"
)

func newSnapshotRestoreCommand(e *env) *cobra.Command {
	var quiet bool
	var identity string
	cmd := &cobra.Command{
		Use:   "restore NAME|PATH",
		Short: "Make this machine's cluster what it was in a snapshot",
		Long: `Put the state and the keys of a snapshot in place of those in the data directory, which may be of another machine, or
empty. Mote must be stopped. What was there is set aside in the data directory, not deleted. A restore that is interrupted
changes nothing, or is finished by the next start of mote. An encrypted snapshot needs the file of the private key.`,
		Example: `  mote datastore snapshot restore before-upgrade
  mote datastore snapshot restore nightly --identity key.txt
  mote datastore snapshot restore /mnt/usb/mote-20260801T120000Z-81234.tar.zst --data-dir=/var/lib/mote`,
		Args: oneArg("a snapshot's name or path"),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing but errors")
	cmd.Flags().StringVarP(&identity, "identity", "i", "", "`file` of the age private key that opens an encrypted snapshot")
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "datastore snapshot restore")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot(verb(cmd)); err != nil {
			return err
		}
		path, err := snapshot.Folder(m.SnapshotDir).Find(args[0])
		if err != nil {
			return err
		}
		var keys snapshot.Keys
		if identity != "" {
			if keys, err = snapshot.ReadKeys(identity); err != nil {
				return err
			}
		}
		var done snapshot.Restored
		err = newSteps(e).long("Restore "+path, quiet || output.json(), func(progress func(done, all int64)) (err error) {
			done, err = m.RestoreSnapshot(cmd.Context(), path, keys, progress)
			return err
		})
		switch {
		case err != nil:
			return machine.DiskHint(err)
		case output.json():
			return printJSON(e.stdout, restoredInfo{
				Path: path, Revision: done.Revision, Time: done.Time, Node: done.Node, Cluster: done.Cluster, Replaced: done.Replaced,
			})
		case !quiet:
			printRestored(e, m, done)
		}
		return nil
	}
	return cmd
}

// restoredInfo is the result of a restore in JSON output.
type restoredInfo struct {
	Path     string    `json:"path"`
	Revision int64     `json:"revision"`
	Time     time.Time `json:"time"`
	Node     string    `json:"node"`
	Cluster  string    `json:"cluster"`
	Replaced []string  `json:"replaced,omitempty"`
}

func printRestored(e *env, m *machine.Machine, done snapshot.Restored) {
	fmt.Fprintf(e.stderr, "The cluster is what it was on node %s at %s (revision %d).\n", done.Node, done.Time.Format(time.RFC3339), done.Revision)
	if len(done.Replaced) > 0 {
		fmt.Fprintf(e.stderr, "What was there before is in %s; remove it when you do not need it any more.\n", strings.Join(done.Replaced, " and "))
	}
	fmt.Fprintln(e.stderr, "Next: mote server")
	if here := m.NodeNameOf(); done.Node != here {
		fmt.Fprintf(e.stderr, "This node is %s: once it is ready, forget the other with \"mote kubectl delete node %s\".\n", here, done.Node)
	}
}
