package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// newCompletionCommand returns the verb that prints a shell's completion script.
func newCompletionCommand(e *env) *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:       "completion bash|zsh|fish",
		Short:     "Print the completion script for a shell",
		GroupID:   groupManage,
		ValidArgs: shells,
		Example: `  source <(mote completion bash)
  mote completion zsh > "${fpath[1]}/_mote"
  mote completion fish > ~/.config/fish/completions/mote.fish`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("completion takes one shell: bash, zsh or fish")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(e.stdout, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(e.stdout)
			case "fish":
				return cmd.Root().GenFishCompletion(e.stdout, true)
			}
			return fmt.Errorf("no completion for %q; use bash, zsh or fish", args[0])
		},
	}
}
