// Command pack writes a packed file (internal/pack) to standard output; scripts/build calls it:
//
//	pack LAUNCHER PROGRAM FRAME
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/mote-k8s/mote/internal/pack"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	if len(args) != 3 {
		return errors.New("usage: pack LAUNCHER PROGRAM FRAME >FILE")
	}
	launcher, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer launcher.Close()
	program, err := os.Open(args[1])
	if err != nil {
		return err
	}
	defer program.Close()
	frame, err := os.ReadFile(args[2])
	if err != nil {
		return err
	}
	return pack.Write(stdout, launcher, program, frame)
}
