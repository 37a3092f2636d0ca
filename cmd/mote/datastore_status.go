package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/machine"
)

// newDatastoreStatusCommand returns the verb that shows the status of the store.
func newDatastoreStatusCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show revision, sizes, alarms and the last snapshot",
		Args:  noArgs,
	}
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "datastore status")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		var r storeReport
		err = m.WithStore(cmd.Context(), func(conn *grpc.ClientConn) (err error) {
			r, err = reportStore(cmd.Context(), conn, m)
			return err
		})
		switch {
		case err != nil:
			return err
		case output.json():
			return printJSON(e.stdout, r)
		}
		return printStore(e.stdout, r, time.Now())
	}
	return cmd
}

// storeReport is the output of datastore status.
type storeReport struct {
	datastore.Status
	Keys         int64                 `json:"keys"`
	Alarms       []string              `json:"alarms"`
	LastSnapshot *machine.SnapshotInfo `json:"lastSnapshot"` // null if there is none
}

func reportStore(ctx context.Context, conn *grpc.ClientConn, m *machine.Machine) (storeReport, error) {
	r := storeReport{Alarms: []string{}}
	var err error
	if r.Status, err = datastore.FetchStatus(ctx, conn); err != nil {
		return r, notOurs(err)
	}
	count, err := etcdserverpb.NewKVClient(conn).Range(ctx, &etcdserverpb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true})
	if err != nil {
		return r, storeError("count keys of", err)
	}
	r.Keys = count.Count
	alarms, err := etcdserverpb.NewMaintenanceClient(conn).Alarm(ctx, &etcdserverpb.AlarmRequest{})
	if err != nil {
		return r, storeError("read alarms of", err)
	}
	for _, a := range alarms.Alarms {
		r.Alarms = append(r.Alarms, a.Alarm.String())
	}
	list, err := snapshot.Folder(m.SnapshotDir).List()
	if err != nil {
		return r, err
	}
	for _, one := range list {
		if one.Err == nil {
			info := machine.InfoOf(one)
			r.LastSnapshot = &info
			break
		}
	}
	return r, nil
}

func printStore(w io.Writer, r storeReport, now time.Time) error {
	alarms, last := "none", "none"
	if len(r.Alarms) > 0 {
		alarms = strings.Join(r.Alarms, ", ")
	}
	if l := r.LastSnapshot; l != nil {
		last = fmt.Sprintf("%s, %s ago", l.Name, age(now, l.Time))
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	rows := [][2]string{
		{"engine", fmt.Sprintf("%s, format %d", r.Engine, r.Format)},
		{"path", r.Path},
		{"revision", fmt.Sprintf("%d, with history from %d", r.Revision, max(r.Compacted, 1))},
		{"keys", fmt.Sprint(r.Keys)},
		{"leases", fmt.Sprint(r.Leases)},
		{"watches", fmt.Sprint(r.Watches)},
		{"file", fileSize(r.FileBytes)},
		{"log", fileSize(r.LogBytes)},
		{"memory", fileSize(r.MemoryBytes)},
		{"used", fmt.Sprintf("%s of %s", fileSize(r.UsedBytes), fileSize(r.QuotaBytes))},
		{"alarms", alarms},
		{"last snapshot", last},
	}
	for _, repair := range r.Repairs {
		rows = append(rows, [2]string{"repaired", repair.Time.Format(time.RFC3339) + ": " + machine.RepairText(repair)})
	}
	for _, row := range rows {
		fmt.Fprintf(t, "%s\t%s\n", row[0], row[1])
	}
	return t.Flush()
}

func fileSize(n int64) string {
	switch {
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n >= 10<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// notOurs adds the next step to an error about a datastore that does not use mote's own engine.
func notOurs(err error) error {
	if errors.Is(err, datastore.ErrNotOurs) || errors.Is(err, snapshot.ErrUnserved) {
		return errors.New("the datastore is another database, which this verb knows nothing of: use its own tools, or bring the data to mote's own with \"mote datastore migrate\"")
	}
	return err
}
