package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/machine"
)

// newDatastoreCheckCommand returns the verb that checks the store for damage.
func newDatastoreCheckCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read the whole store and report what is wrong with it",
		Long: `Read every page and every record of the store and compare them with each other. Each problem is a line on standard output; the
exit code is 1 when there is any. Changes wait for their turn while a running mote's store is read: a second for some
hundred megabytes.`,
		Args: noArgs,
	}
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "datastore check")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		steps := newSteps(e)
		if output.json() {
			steps.terminal = false
		}
		var found []string
		look := func() (err error) {
			found, err = checkStore(cmd.Context(), m)
			return err
		}
		if steps.terminal {
			err = steps.Do("Check "+m.StorePath(), look)
		} else {
			err = look()
		}
		if err != nil {
			return err
		}
		return reportCheck(e, found, output.json())
	}
	return cmd
}

// checkStore checks a running mote's store, or else the files of a stopped one. It does not open
// those files, because opening them repairs what it can.
func checkStore(ctx context.Context, m *machine.Machine) (found []string, err error) {
	if err := machine.RequireRoot("datastore check"); err != nil {
		return nil, err
	}
	pid, err := m.Holder()
	if err != nil {
		return nil, err
	}
	if pid == 0 && m.OwnEngine() {
		lock, err := m.LockStopped()
		if err != nil {
			return nil, err
		}
		return datastore.CheckFile(m.StorePath()), lock.Close()
	}
	err = m.WithStore(ctx, func(conn *grpc.ClientConn) error {
		found, err = datastore.Check(ctx, conn)
		return notOurs(err)
	})
	return found, err
}

func reportCheck(e *env, found []string, asJSON bool) error {
	if asJSON {
		if err := printJSON(e.stdout, map[string][]string{"problems": found}); err != nil {
			return err
		}
		if len(found) > 0 {
			return &exitError{code: 1}
		}
		return nil
	}
	for _, one := range found {
		fmt.Fprintln(e.stdout, one)
	}
	if len(found) > 0 {
		return errors.New("the datastore is damaged; a start of mote repairs what can be repaired, and \"mote datastore snapshot restore\" brings back an earlier state")
	}
	_, err := fmt.Fprintln(e.stdout, "no problems found")
	return err
}
