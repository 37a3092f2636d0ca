package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/agent"
)

// importedImage is one line of "image import -o json".
type importedImage struct {
	Archive string `json:"archive"`
	Name    string `json:"name"`
}

func newImageImportCommand(e *env) *cobra.Command {
	var options agent.ImportOptions
	var quiet bool
	cmd := &cobra.Command{
		Use:   "import FILE|- ...",
		Short: "Import image archives into the running mote",
		Long: `Import image archives (docker save or OCI layout; plain, gzip or zstd) into the running mote. "-" reads an
archive from standard input. Pods find the images by name and by digest. An import that fails leaves nothing.
The names of what was imported go to standard output.

The kubelet removes images that no container uses when the disk is 85 % full. Pinned images stay: those of
archives in the image directory (--image-dir of mote server) for as long as they are there, and with --pin.`,
		Example: `  mote image import app.tar
  docker save app:1 | mote image import -`,
		Args: needArgs(1, false, "an archive: a file, or - for standard input"),
	}
	cmd.Flags().BoolVar(&options.Pin, "pin", false, "keep the images until \"mote image unpin\" or rm")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "image")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		archives, err := openArchives(e, args)
		defer func() {
			for _, a := range archives {
				a.Close()
			}
		}()
		if err != nil {
			return err
		}
		return withImages(load, func(store *agent.ImageStore) error {
			imported, err := importAll(cmd.Context(), store, args, archives, options)
			if quiet {
				return err
			}
			if output.json() {
				if err == nil {
					err = printJSON(e.stdout, imported)
				}
				return err
			}
			for _, i := range imported {
				fmt.Fprintln(e.stdout, i.Name)
			}
			noteLatest(e.stderr, imported)
			return err
		})
	}
	return cmd
}

// openArchives opens all archives before the first is imported, so that a wrong name leaves the
// images unchanged.
func openArchives(e *env, paths []string) ([]io.ReadCloser, error) {
	var archives []io.ReadCloser
	for _, path := range paths {
		if path == "-" {
			if isTerminal(e.stdin) {
				return archives, fmt.Errorf("standard input is a terminal; pipe an archive into it, such as docker save app:1 | mote image import -")
			}
			archives = append(archives, io.NopCloser(e.stdin))
			continue
		}
		f, err := agent.OpenArchive(path)
		if err != nil {
			return archives, fmt.Errorf("%s: %w", path, err)
		}
		archives = append(archives, f)
	}
	return archives, nil
}

func importAll(ctx context.Context, store *agent.ImageStore, paths []string, archives []io.ReadCloser, o agent.ImportOptions) ([]importedImage, error) {
	imported := []importedImage{}
	for i, archive := range archives {
		names, err := store.Import(ctx, archive, o)
		if err != nil {
			return imported, fmt.Errorf("%s: %w", paths[i], err)
		}
		for _, name := range names {
			imported = append(imported, importedImage{paths[i], name})
		}
	}
	return imported, nil
}

// noteLatest explains how pods treat the tag latest.
func noteLatest(w io.Writer, imported []importedImage) {
	for _, i := range imported {
		if strings.HasSuffix(i.Name, ":latest") {
			fmt.Fprintln(w, "The tag latest makes pods pull always, unless they set imagePullPolicy: IfNotPresent. "+
				"Such a pull is answered with what was imported if the image is pinned or its registry does not answer.")
			return
		}
	}
}
