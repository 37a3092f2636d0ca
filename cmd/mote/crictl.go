package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/agent/payload"
)

// newCrictlCommand returns the verb that becomes crictl, pointed at mote's containerd. crictl is a main
// package upstream, so it is a program of its own, and lies in the payload of the files that carry it.
func newCrictlCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:                "crictl",
		Short:              "Look at pods and containers with crictl",
		GroupID:            groupUse,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := ambientSettings(e)
			if err != nil {
				return err
			}
			program := filepath.Join(payload.Dir(payloadRoot(s)), "crictl")
			endpoint := "unix://" + s.ContainerdSocket()
			env := append(os.Environ(), "CONTAINER_RUNTIME_ENDPOINT="+endpoint, "IMAGE_SERVICE_ENDPOINT="+endpoint)
			err = syscall.Exec(program, append([]string{"crictl"}, args...), env)
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("this machine has no %s; start mote once with a file that carries crictl, or use \"mote ctr\"", program)
			}
			return fmt.Errorf("start %s: %w", program, err)
		},
	}
}
