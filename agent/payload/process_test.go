package payload

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	sceneVariable = "PAYLOAD_TEST_SCENE"
	rootVariable  = "PAYLOAD_TEST_ROOT"
)

// process returns a command that runs a scene of this test program on root. A scene that mounts
// something gets a mount namespace of its own.
func process(ctx context.Context, scene, root string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), sceneVariable+"="+scene, rootVariable+"="+root)
	if scene != "unpack" && scene != "stall" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	}
	return cmd
}

// runScene runs a scene in the started process. It prints the error and returns the exit code.
func runScene(scene, root string) int {
	a, err := pack("v1")
	if err == nil {
		err = prepare(scene, root, &a)
	}
	if err != nil {
		fmt.Println("cannot prepare:", err)
		return 3
	}
	if _, err := a.unpack(context.Background(), root); err != nil {
		fmt.Println(err)
		entries, err := os.ReadDir(root)
		if err != nil || (len(entries) > 0 && scene != "repair on full disk") {
			fmt.Println("left behind:", entries, err)
		}
		return 1
	}
	return 0
}

func prepare(scene, root string, a *archive) error {
	mount := func(flags uintptr, options string) error {
		return unix.Mount("tmpfs", root, "tmpfs", flags, options)
	}
	switch scene {
	case "full disk":
		return mount(0, "size=64k")
	case "read-only disk":
		return mount(unix.MS_RDONLY, "")
	case "noexec disk":
		return mount(unix.MS_NOEXEC, "")
	case "unpacked read-only disk":
		if err := mount(0, ""); err != nil {
			return err
		}
		if _, err := a.unpack(context.Background(), root); err != nil {
			return err
		}
		return mount(unix.MS_REMOUNT|unix.MS_RDONLY, "")
	case "repair on full disk":
		if err := mount(0, "size=1M"); err != nil {
			return err
		}
		dir, err := a.unpack(context.Background(), root)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "init"), []byte("damaged"), programMode); err != nil {
			return err
		}
		ballast, err := os.Create(filepath.Join(root, "ballast"))
		if err != nil {
			return err
		}
		defer ballast.Close()
		for err == nil {
			_, err = ballast.Write(make([]byte, 4096))
		}
	case "stall":
		open := a.open
		a.open = func() (io.ReadCloser, error) {
			source, err := open()
			return &stalling{ReadCloser: source}, err
		}
	}
	return nil
}

// stalling reads a little of the archive, prints that it did, and then reads nothing more.
type stalling struct {
	io.ReadCloser
	read int
}

func (s *stalling) Read(p []byte) (int, error) {
	const enough = 300_000
	if s.read >= enough {
		fmt.Println("half")
		io.Copy(io.Discard, os.Stdin) // until killed
	}
	n, err := s.ReadCloser.Read(p[:min(len(p), enough-s.read)])
	s.read += n
	return n, err
}

func TestSeveralProcessesAtOnce(t *testing.T) {
	a, root := synthetic(t, "v1"), t.TempDir()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			out, err := process(t.Context(), "unpack", root).CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	all.Wait()
	requireWhole(t, a, filepath.Join(root, a.Archive))
	require.Equal(t, []string{a.Archive}, list(t, root))
}

func TestKilledInTheMiddle(t *testing.T) {
	a, root := synthetic(t, "v1"), t.TempDir()
	victim := process(t.Context(), "stall", root)
	_, err := victim.StdinPipe()
	require.NoError(t, err)
	out, err := victim.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, victim.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "half\n", line)
	require.NoError(t, victim.Process.Kill())
	require.Error(t, victim.Wait())
	dir := filepath.Join(root, a.Archive)
	require.DirExists(t, dir)

	_, err = a.unpack(t.Context(), root)
	require.NoError(t, err)
	requireWhole(t, a, dir)
	require.Equal(t, []string{a.Archive}, list(t, root))
}

func TestBadDisks(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	tests := map[string]struct {
		want string
		code int
	}{
		"full disk":               {"no space left on device; free some 40 MB or set --data-dir\n", 1},
		"repair on full disk":     {"no space left on device; free some 40 MB or set --data-dir\n", 1},
		"read-only disk":          {"read-only file system; mount it read-write or set --data-dir\n", 1},
		"noexec disk":             {"mounted noexec; remount it with exec or set --data-dir\n", 1},
		"unpacked read-only disk": {"", 0},
	}
	for scene, test := range tests {
		t.Run(scene, func(t *testing.T) {
			root := t.TempDir()
			out, err := process(t.Context(), scene, root).CombinedOutput()
			code := 0
			if exit, ok := err.(*exec.ExitError); ok {
				code = exit.ExitCode()
			}
			require.Equal(t, test.code, code, string(out))
			if test.want == "" {
				require.Empty(t, string(out))
				return
			}
			require.Regexp(t, `^cannot unpack programs to `+root+`: .*`+test.want+`$`, string(out))
		})
	}
}
