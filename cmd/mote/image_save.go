package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/agent"
)

func newImageSaveCommand(e *env) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "save IMAGE... [--file FILE]",
		Short: "Write images to an archive",
		Long: `Write images to an archive, an OCI layout that "docker load" and "mote image import" take. It holds what is for this
machine's platform. Without --file it goes to standard output.`,
		Example: `  mote image save app:1 --file app.tar
  mote image save app:1 | ssh HOST sudo mote image import -`,
		Args: needArgs(1, false, "an image"),
	}
	cmd.Flags().StringVarP(&path, "file", "f", "", "write the archive to this `file`")
	load := withSettings(cmd, e, "image")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if path == "" && isTerminal(e.stdout) {
			return errors.New("standard output is a terminal; name a file with --file")
		}
		return withImages(load, func(store *agent.ImageStore) error {
			if path == "" {
				return store.Save(cmd.Context(), e.stdout, args)
			}
			return saveFile(cmd.Context(), store, path, args)
		})
	}
	return cmd
}

// saveFile writes the archive to a temporary file beside path and renames it, so that path never
// has a partial archive.
func saveFile(ctx context.Context, store *agent.ImageStore, path string, names []string) error {
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	err = errors.Join(store.Save(ctx, io.Writer(f), names), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return nil
}
