package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// binfmtDir lists the executable formats that were added to the kernel's own.
const binfmtDir = "/proc/sys/fs/binfmt_misc"

// LookPath returns an error if Run cannot run the program name. mote, kubectl and ctr are always
// the sandbox's own. Errors wrap exec.ErrNotFound, fs.ErrPermission or ErrNoProgram.
func LookPath(name string) error {
	if slices.Contains(commandNames[:], name) {
		return nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	if err := checkFormat(path); err != nil {
		return &exec.Error{Name: name, Err: err}
	}
	return nil
}

// ErrNoProgram means that the kernel refuses to execute a file.
var ErrNoProgram = errors.New("the kernel cannot run it")

// checkFormat detects reasons for which the kernel would refuse the file at path: a script without
// its first line, or one whose interpreter is missing. If checkFormat cannot read the file, the
// kernel decides.
func checkFormat(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	head := make([]byte, 256) // the kernel reads the same number of bytes (BINPRM_BUF_SIZE)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil
	}
	head = head[:n]
	if line, ok := bytes.CutPrefix(head, []byte("#!")); ok {
		line, _, _ = bytes.Cut(line, []byte("\n"))
		words := strings.Fields(string(line))
		if len(words) == 0 {
			return fmt.Errorf("%w: its #! line names no interpreter", ErrNoProgram)
		}
		if err := unix.Access(words[0], unix.X_OK); err != nil {
			return fmt.Errorf("%w: its interpreter %q: %w", ErrNoProgram, words[0], err)
		}
		return nil
	}
	if bytes.HasPrefix(head, []byte("\x7fELF")) || otherFormats() {
		return nil
	}
	return fmt.Errorf("%w: it is no program and has no #! line; begin it with #!/bin/sh, or run: sh %s", ErrNoProgram, path)
}

// otherFormats reports whether users have added formats to the kernel (binfmt_misc).
func otherFormats() bool {
	entries, err := os.ReadDir(binfmtDir)
	return err == nil && slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return e.Name() != "register" && e.Name() != "status"
	})
}
