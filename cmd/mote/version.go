package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/internal/licenses"
	"github.com/mote-k8s/mote/internal/version"
)

// newVersionCommand returns the verb that prints the versions of the components in this file.
func newVersionCommand(e *env) *cobra.Command {
	var short, texts bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the versions of mote and its parts",
		GroupID: groupManage,
		Args:    noArgs,
	}
	output := outputFlag(cmd)
	cmd.Flags().BoolVarP(&short, "short", "q", false, "print mote's version alone")
	cmd.Flags().BoolVar(&texts, "licenses", false, "print the parts of this file with their licences and licence texts")
	cmd.RunE = func(*cobra.Command, []string) error {
		v := version.Get()
		switch {
		case texts:
			return licenses.Write(e.stdout)
		case output.json():
			return printJSON(e.stdout, v)
		case short:
			_, err := fmt.Fprintln(e.stdout, v.Mote)
			return err
		}
		_, err := fmt.Fprintf(e.stdout, "mote        %s\nKubernetes  %s\ncontainerd  %s\nrunc        %s\nGo          %s %s\n",
			v.Mote, v.Kubernetes, v.Containerd, v.Runc, v.Go, v.Platform)
		return err
	}
	return cmd
}
