package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/mote-k8s/mote/datastore"
)

// newDatastoreCheckCommand returns the verb that looks for damage.
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
		s, err := load()
		if err != nil {
			return err
		}
		var found []string
		steps := newSteps(e)
		err = withStore(cmd.Context(), e, s, func(conn *grpc.ClientConn) error {
			if output.json() || !steps.terminal {
				found, err = datastore.Check(cmd.Context(), conn)
				return notOurs(err)
			}
			return steps.do("Check "+storePath(s), func() (err error) {
				found, err = datastore.Check(cmd.Context(), conn)
				return notOurs(err)
			})
		})
		if err != nil {
			return err
		}
		return reportCheck(e, found, output.json())
	}
	return cmd
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
		return fmt.Errorf("the datastore is damaged; stop mote and bring back a good state with \"mote datastore snapshot restore\"")
	}
	_, err := fmt.Fprintln(e.stdout, "no problems found")
	return err
}
