package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/agent"
)

func newImageTagCommand(e *env) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "tag IMAGE NAME",
		Short: "Give an image a second name",
		Args:  needArgs(2, true, "an image and a new name"),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	load := withSettings(cmd, e, "image")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return withImages(load, func(store *agent.ImageStore) error {
			name, err := store.Tag(cmd.Context(), args[0], args[1])
			if err == nil && !quiet {
				fmt.Fprintln(e.stdout, name)
			}
			return err
		})
	}
	return cmd
}

func newImagePinCommand(e *env) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pin IMAGE...",
		Short: "Keep images until they are unpinned",
		Long: `Keep images from the kubelet, which removes what no container uses when the disk is 85 % full, and from
"mote image prune". A pin belongs to a name: another image that gets the name is pinned instead.`,
		Args: needArgs(1, false, "an image"),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	load := withSettings(cmd, e, "image")
	cmd.RunE = eachName(e, load, &quiet, func(ctx context.Context, store *agent.ImageStore, name string) (string, error) {
		return store.Pin(ctx, name)
	})
	return cmd
}

func newImageUnpinCommand(e *env) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "unpin IMAGE...",
		Short: "Let the kubelet and prune remove images",
		Args:  needArgs(1, false, "an image"),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	load := withSettings(cmd, e, "image")
	cmd.RunE = eachName(e, load, &quiet, func(ctx context.Context, store *agent.ImageStore, name string) (string, error) {
		return store.Unpin(ctx, name)
	})
	return cmd
}

func newImageRemoveCommand(e *env) *cobra.Command {
	var force, quiet bool
	cmd := &cobra.Command{
		Use:     "rm IMAGE...",
		Aliases: []string{"remove"},
		Short:   "Remove images",
		Long: `Remove the names of images, and the images with them if they have no other. Images that are pinned or that a
container uses are refused unless --force is set; containers that run keep their files.`,
		Args: needArgs(1, false, "an image"),
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove images that are pinned or in use too")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	load := withSettings(cmd, e, "image")
	cmd.RunE = eachName(e, load, &quiet, func(ctx context.Context, store *agent.ImageStore, name string) (string, error) {
		return name, store.Remove(ctx, name, force)
	})
	return cmd
}

func newImagePruneCommand(e *env) *cobra.Command {
	var all, quiet bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that nothing uses",
		Long: `Remove images without a tag that no container uses, such as those whose tag was imported again. Pinned images
stay. The names of what was removed go to standard output.`,
		Args: noArgs,
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "remove images with a tag that no container uses too")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "image")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return withImages(load, func(store *agent.ImageStore) error {
			removed, err := store.Prune(cmd.Context(), all)
			switch {
			case quiet:
			case output.json() && err == nil:
				err = printJSON(e.stdout, removed)
			case !output.json():
				for _, name := range removed {
					fmt.Fprintln(e.stdout, name)
				}
				fmt.Fprintf(e.stderr, "%d images removed\n", len(removed))
			}
			return err
		})
	}
	return cmd
}
