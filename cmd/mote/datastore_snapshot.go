package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/machine"
)

// newDatastoreSnapshotCommand returns the verbs for backups.
func newDatastoreSnapshotCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Back the cluster's state up, and bring it back",
		Long: `A snapshot is one file with the whole state of the cluster and its keys: this machine, or another one, can be made
what it was from that file alone. Whoever has the file has the cluster, unless it is encrypted (--snapshot-recipient). A running mote
saves some by itself (--snapshot-schedule); copy them to another machine: a disk that dies takes them along, and so does "mote reset".`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(
		newSnapshotSaveCommand(e),
		newSnapshotListCommand(e),
		newSnapshotRestoreCommand(e),
		newSnapshotPruneCommand(e),
	)
	return cmd
}

func newSnapshotSaveCommand(e *env) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "save [NAME]",
		Short: "Save a snapshot now",
		Long: `Save a snapshot, while mote runs or not, and print where it is. It is read back and checked before it counts.
One without a NAME is called by time and revision and is pruned with those that mote saves by itself; one with a
NAME stays until you remove the file.`,
		Example: `  mote datastore snapshot save
  mote datastore snapshot save before-upgrade`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return oneArg("a name")(cmd, args)
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the path alone, and no progress")
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "datastore snapshot save")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot(verb(cmd)); err != nil {
			return err
		}
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		saved, err := saveSnapshot(cmd.Context(), e, m, name, quiet || output.json())
		switch {
		case err != nil:
			return err
		case output.json():
			return printJSON(e.stdout, machine.InfoOf(saved))
		case quiet:
			_, err = fmt.Fprintln(e.stdout, saved.Path)
		default:
			_, err = fmt.Fprintf(e.stdout, "%s (%s, revision %d)\n", saved.Path, fileSize(saved.Size), saved.Revision)
		}
		return err
	}
	return cmd
}

func saveSnapshot(ctx context.Context, e *env, m *machine.Machine, name string, quiet bool) (snapshot.Snapshot, error) {
	var saved snapshot.Snapshot
	err := m.WithStore(ctx, func(conn *grpc.ClientConn) error {
		if _, err := datastore.FetchStatus(ctx, conn); err != nil {
			return err // other databases report this in many ways
		}
		return newSteps(e).long("Save a snapshot", quiet, func(progress func(done, all int64)) (err error) {
			saved, err = snapshot.Folder(m.SnapshotDir).Save(ctx, name, snapshot.FromConnection(conn), m.SnapshotOrigin(), progress)
			return err
		})
	})
	if errors.Is(err, snapshot.ErrNoRoom) {
		err = fmt.Errorf("%w; free some, or choose another --snapshot-dir", err)
	}
	return saved, notOurs(err)
}

func newSnapshotListCommand(e *env) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the snapshots on this machine, the newest first",
		Args:  noArgs,
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names alone")
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "datastore snapshot list")
	cmd.RunE = func(*cobra.Command, []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		list, err := snapshot.Folder(m.SnapshotDir).List()
		if err != nil {
			return err
		}
		infos := make([]machine.SnapshotInfo, len(list))
		for i, one := range list {
			infos[i] = machine.InfoOf(one)
		}
		if output.json() {
			return printJSON(e.stdout, infos)
		}
		return printSnapshots(e.stdout, infos, quiet)
	}
	return cmd
}

func printSnapshots(w io.Writer, list []machine.SnapshotInfo, quiet bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	if !quiet {
		fmt.Fprintln(t, "NAME\tTIME\tREVISION\tSIZE\tNODE\tKUBERNETES\tENCRYPTED")
	}
	for _, s := range list {
		switch {
		case quiet:
			fmt.Fprintln(t, s.Name)
		case s.Error != "":
			fmt.Fprintf(t, "%s\tdamaged\t\t\t\t\t\n", s.Name)
		default:
			encrypted := "no"
			if s.Encrypted {
				encrypted = "yes"
			}
			fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", s.Name, s.Time.Format(time.RFC3339), s.Revision, fileSize(s.Size), s.Node, s.Kubernetes, encrypted)
		}
	}
	return t.Flush()
}

func newSnapshotPruneCommand(e *env) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove all snapshots but the newest few",
		Long: `Remove the snapshots that were saved without a name, but the newest --snapshot-retention of them. The newest that is whole is
never removed. The names of what was removed go to standard output.`,
		Args: noArgs,
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "datastore snapshot prune")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot(verb(cmd)); err != nil {
			return err
		}
		cluster, err := snapshot.Fingerprint(layout.Data(m.DataDir).Server())
		if err != nil {
			return err
		}
		removed, err := snapshot.Folder(m.SnapshotDir).Prune(cmd.Context(), m.SnapshotRetention, cluster)
		if err != nil {
			return err
		}
		if output.json() {
			return printJSON(e.stdout, map[string][]string{"removed": append([]string{}, removed...)})
		}
		for _, name := range removed {
			if !quiet {
				fmt.Fprintln(e.stdout, name)
			}
		}
		return nil
	}
	return cmd
}
