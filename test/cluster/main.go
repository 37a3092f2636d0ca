package cluster

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// LevelsVariable names the environment variable with the list of expensive test levels to run, e.g.
// MOTE_TEST=e2e,crash. scripts/test sets it; `go test ./...` alone runs none of them.
const LevelsVariable = "MOTE_TEST"

// reaperName is the name under which a private host starts the test's own program as PID 1.
const reaperName = "/.reaper"

// Main is TestMain of a package that uses hosts. It runs nothing unless the level is in MOTE_TEST.
func Main(m *testing.M, level string) {
	os.Exit(run(m, level))
}

func run(m *testing.M, level string) int {
	if os.Args[0] == reaperName {
		reap(os.Stdin)
		return 0
	}
	if !slices.Contains(strings.Split(os.Getenv(LevelsVariable), ","), level) {
		fmt.Printf("not run: needs root and bin/mote; run it with: sudo ./scripts/test %s\n", level)
		return 0
	}
	if os.Geteuid() != 0 {
		fmt.Println("the tests make namespaces and mounts: run them as root")
		return 1
	}
	if _, err := os.Stat(Binary()); err != nil {
		fmt.Printf("%v; build it with ./scripts/build\n", err)
		return 1
	}
	return m.Run()
}

// reap is PID 1 of a private host: it reaps orphans until the test's pipe closes.
func reap(pipe io.Reader) {
	orphans := make(chan os.Signal, 1)
	signal.Notify(orphans, syscall.SIGCHLD)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = io.Copy(io.Discard, pipe)
	}()
	fmt.Println("ready")
	for {
		select {
		case <-closed:
			return
		case <-orphans:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}

// Binary returns the path of the mote file under test: MOTE_BINARY, or bin/mote of the repository.
func Binary() string {
	if path := os.Getenv("MOTE_BINARY"); path != "" {
		return path
	}
	return filepath.Join(Root(), "bin", "mote")
}

// Root returns the repository's directory, found from the test's working directory.
func Root() string {
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d
		}
	}
	return dir
}
