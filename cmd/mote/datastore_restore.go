package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/cmd/mote/settings"
	"github.com/mote-k8s/mote/datastore/snapshot"
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
	cmd.Flags().StringVarP(&identity, "identity", "i", "", "file of the age private key that opens an encrypted snapshot")
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "datastore snapshot restore")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := load()
		if err != nil {
			return err
		}
		if err := requireRoot(verb(cmd)); err != nil {
			return err
		}
		path, err := snapshot.Folder(s.SnapshotDir).Find(args[0])
		if err != nil {
			return err
		}
		var keys snapshot.Keys
		if identity != "" {
			if keys, err = snapshot.ReadKeys(identity); err != nil {
				return err
			}
		}
		done, err := restoreSnapshot(cmd.Context(), e, s, path, keys, quiet || output.json())
		switch {
		case err != nil:
			return diskHint(err)
		case output.json():
			return printJSON(e.stdout, restoredInfo{
				Path: path, Revision: done.Revision, Time: done.Time, Node: done.Node, Cluster: done.Cluster, Replaced: done.Replaced,
			})
		case !quiet:
			printRestored(e, s, done)
		}
		return nil
	}
	return cmd
}

// restoredInfo is a restore for programs.
type restoredInfo struct {
	Path     string    `json:"path"`
	Revision int64     `json:"revision"`
	Time     time.Time `json:"time"`
	Node     string    `json:"node"`
	Cluster  string    `json:"cluster"`
	Replaced []string  `json:"replaced,omitempty"`
}

func restoreSnapshot(ctx context.Context, e *env, s *settings.Settings, path string, keys snapshot.Keys, quiet bool) (snapshot.Restored, error) {
	var done snapshot.Restored
	if !ownEngine(s) {
		return done, errors.New("datastore-endpoint names another database, and a snapshot is of mote's own: restore with --datastore-endpoint=bolt, then move the state there with \"mote datastore migrate\"")
	}
	if err := checkNoReset(s.DataDir); err != nil {
		return done, err
	}
	pid, err := holderOf(s.DataDir)
	if err != nil {
		return done, err
	}
	if pid != 0 {
		return done, fmt.Errorf("mote is running on %s (pid %d); stop it with \"mote stop\", then restore", s.DataDir, pid)
	}
	lock, err := lockDataDir(s.DataDir)
	if err != nil {
		return done, err
	}
	defer lock.close()
	err = newSteps(e).long("Restore "+path, quiet, func(progress func(done, all int64)) (err error) {
		done, err = snapshot.Restore(ctx, path, s.DataDir, keys, progress)
		return err
	})
	if errors.Is(err, snapshot.ErrDamaged) {
		err = fmt.Errorf("%w; nothing was changed; \"mote datastore snapshot list\" shows others", err)
	}
	return done, err
}

func printRestored(e *env, s *settings.Settings, done snapshot.Restored) {
	fmt.Fprintf(e.stderr, "The cluster is what it was on node %s at %s (revision %d).\n", done.Node, done.Time.Format(time.RFC3339), done.Revision)
	if len(done.Replaced) > 0 {
		fmt.Fprintf(e.stderr, "What was there before is in %s; remove it when you do not need it any more.\n", strings.Join(done.Replaced, " and "))
	}
	fmt.Fprintln(e.stderr, "Next: mote server")
	if here := nodeNameOf(s); done.Node != here {
		fmt.Fprintf(e.stderr, "This node is %s: once it is ready, forget the other with \"mote kubectl delete node %s\".\n", here, done.Node)
	}
}

// resumeRestore finishes a restore that was interrupted, under the data directory's lock.
func resumeRestore(s *settings.Settings) error {
	done, resumed, err := snapshot.Resume(s.DataDir)
	if err != nil {
		return diskHint(err)
	}
	if resumed {
		slog.Warn("an interrupted restore of a snapshot was finished", "component", "mote",
			"revision", done.Revision, "time", done.Time, "node", done.Node, "replaced", strings.Join(done.Replaced, " "))
	}
	return nil
}
