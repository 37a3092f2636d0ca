package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/agent"
)

// newImageCommand returns the verb for container images on this machine.
func newImageCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "image",
		Short:   "Import and list container images",
		GroupID: groupUse,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(newImageImportCommand(e), newImageListCommand(e))
	return cmd
}

func newImageImportCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import FILE|- ...",
		Short: "Import image archives into the running mote",
		Long: `Import image archives (docker save or OCI layout; plain, gzip or zstd) into the running mote.
The images are pinned: the kubelet never removes them. "-" reads an archive from standard input.
The names of what was imported go to standard output.`,
		Example: `  mote image import app.tar
  docker save app:1 | mote image import -`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("image import needs an archive: a file, or - for standard input")
			}
			return nil
		},
	}
	load := withSettings(cmd, e, "image")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := load()
		if err != nil {
			return err
		}
		for _, path := range args {
			names, err := importImage(cmd.Context(), e, s.ContainerdSocket(), path)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			for _, n := range names {
				fmt.Fprintln(e.stdout, n)
			}
		}
		return nil
	}
	return cmd
}

func importImage(ctx context.Context, e *env, socket, path string) ([]string, error) {
	if err := requireSocket(socket); err != nil {
		return nil, err
	}
	archive := io.NopCloser(e.stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, errors.Unwrap(err) // the path is said by the caller
		}
		archive = f
	}
	defer archive.Close()
	return agent.ImportImages(ctx, socket, archive)
}

func newImageListCommand(e *env) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the images that pods can use without a registry",
		Args:  noArgs,
	}
	output := outputFlag(cmd)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names alone")
	load := withSettings(cmd, e, "image")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := load()
		if err != nil {
			return err
		}
		if err := requireSocket(s.ContainerdSocket()); err != nil {
			return err
		}
		images, err := agent.ListImages(cmd.Context(), s.ContainerdSocket())
		if err != nil {
			return err
		}
		if output.json() {
			return printJSON(e.stdout, images)
		}
		return printImages(e.stdout, images, quiet)
	}
	return cmd
}

func printImages(w io.Writer, images []agent.Image, quiet bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	if !quiet {
		fmt.Fprintln(t, "NAME\tSIZE\tPINNED\tDIGEST")
	}
	for _, i := range images {
		if quiet {
			fmt.Fprintln(t, i.Name)
			continue
		}
		fmt.Fprintf(t, "%s\t%.1f MiB\t%t\t%s\n", i.Name, float64(i.Size)/(1<<20), i.Pinned, i.Digest)
	}
	return t.Flush()
}

// requireSocket says in the user's words that containerd is not there, before its client says so in
// its own, after a timeout.
func requireSocket(path string) error {
	_, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w (no containerd on %s); start it with \"mote server\"", errNotRunning, path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("reach containerd: %w; run as root", err)
	}
	return err
}
