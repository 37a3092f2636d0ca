package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/agent"
)

func newImageListCommand(e *env) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the images that pods can use without a registry",
		Long: `List the images that pods can use without a registry. SIZE is that of an image's blobs, DISK with its unpacked
layers; images share both. PINNED says who keeps an image: the user, or an archive in the image directory.`,
		Args: noArgs,
	}
	output := outputFlag(cmd)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names alone")
	load := withSettings(cmd, e, "image")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return withImages(load, func(store *agent.ImageStore) error {
			images, err := store.List(cmd.Context())
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(e.stdout, images)
			}
			return printImages(e.stdout, images, quiet)
		})
	}
	return cmd
}

func printImages(w io.Writer, images []agent.Image, quiet bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	if !quiet {
		fmt.Fprintln(t, "NAME\tSIZE\tDISK\tPINNED\tDIGEST")
	}
	for _, i := range images {
		if quiet {
			fmt.Fprintln(t, i.Name)
			continue
		}
		pinned := "-"
		switch {
		case i.PinnedBy != "":
			pinned = i.PinnedBy
		case i.Pinned:
			pinned = "mote"
		}
		fmt.Fprintf(t, "%s\t%.1f MiB\t%.1f MiB\t%s\t%s\n", i.Name, float64(i.Size)/(1<<20), float64(i.Disk)/(1<<20), pinned, i.Digest)
	}
	return t.Flush()
}
