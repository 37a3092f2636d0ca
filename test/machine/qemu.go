package machine

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// bootTimeout is the time to a shell on the console: 5 s here, emulated.
	bootTimeout = 3 * time.Minute
	// commandTimeout is for one command on the console. Emulation is some ten times slower than the
	// processor.
	commandTimeout = 5 * time.Minute
	// kernelPanic is the message of the guest's kernel when it ends, and lockup the message when
	// its watchdog has ended it. Now and then both processors of QEMU 7.2's emulation are stuck in
	// the kernel at the same time, for ever. The machine then restarts by itself, as a device with
	// a watchdog does.
	kernelPanic = "Kernel panic - not syncing"
	lockup      = kernelPanic + ": softlockup"
	// stuck is the watchdog's first message.
	stuck = "watchdog: BUG: soft lockup"
	// maxLockups is the number of lockups that the emulator may cause in one test; more are a bug.
	maxLockups = 2
	// banner and prompt are those of a fresh shell.
	banner = "built-in shell (ash)"
	prompt = "/ # "
)

// guest is a running machine and its serial console.
type guest struct {
	cmd   *exec.Cmd
	stdin io.Writer

	lockups int // since the power was switched on

	mu     sync.Mutex // guards output and news
	output bytes.Buffer
	news   chan struct{} // closed when there is more output
	ended  chan struct{} // closed when QEMU has ended
}

// boot starts the machine and waits for a shell. The machine ends with the test.
func boot(t *testing.T, k kernel, initrd, disk string, megabytes int) *guest {
	t.Helper()
	g := &guest{news: make(chan struct{}), ended: make(chan struct{})}
	g.cmd = exec.Command("qemu-system-x86_64",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", "2", "-m", strconv.Itoa(megabytes),
		"-kernel", k.image, "-initrd", initrd,
		// The kernel ends itself when a processor is stuck for 120 s, and restarts. During a
		// shorter time the emulator may only have waited for a processor of a busy machine.
		"-append", "console=ttyS0 quiet panic=-1 softlockup_panic=1 watchdog_thresh=60",
		// writeback: the machine's own page cache keeps the data that the guest has written to its
		// disk, and outlives QEMU. So exactly the data that the guest had not yet written is lost.
		"-drive", "file="+disk+",format=raw,if=virtio,cache=writeback",
		"-nic", "none", "-display", "none", "-monitor", "none", "-serial", "stdio")
	stdin, err := g.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	g.stdin = stdin
	g.cmd.Stdout, g.cmd.Stderr = g, os.Stderr
	// If the test is killed, the kernel kills QEMU too. That signal comes when the starting thread
	// ends, so the thread is kept for this test.
	runtime.LockOSThread()
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := g.cmd.Start(); err != nil {
		t.Fatalf("start QEMU: %v", err)
	}
	go func() {
		defer close(g.ended)
		_ = g.cmd.Wait()
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the console:\n%s", g.tail())
		}
		g.cutPower()
	})
	g.login(t)
	return g
}

// login waits for the shell after a boot, and returns the console's output until then.
func (g *guest) login(t *testing.T) string {
	t.Helper()
	out := g.until(t, bootTimeout, "a shell", func(out string) bool { return strings.Contains(out, prompt) })
	g.run(t, "stty -echo; export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PS1=; dmesg -n 1")
	return out
}

// Write receives the console's output.
func (g *guest) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.output.Write(p)
	close(g.news)
	g.news = make(chan struct{})
	return len(p), nil
}

func (g *guest) snapshot() (string, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.output.String(), g.news
}

func (g *guest) tail() string {
	out, _ := g.snapshot()
	return out[max(0, len(out)-8000):]
}

// until waits until the console's output since the last command satisfies the condition.
func (g *guest) until(t *testing.T, timeout time.Duration, what string, done func(out string) bool) string {
	t.Helper()
	deadline := time.After(timeout)
	for {
		out, news := g.snapshot()
		if done(out) {
			return out
		}
		select {
		case <-news:
		case <-g.ended:
			t.Fatalf("QEMU ended while the test waited for %s", what)
		case <-deadline:
			t.Fatalf("waited %v for %s", timeout, what)
		}
	}
}

// send types a command and discards the output before it.
func (g *guest) send(t *testing.T, command string) {
	t.Helper()
	g.mu.Lock()
	g.output.Reset()
	g.mu.Unlock()
	if _, err := fmt.Fprintln(g.stdin, command); err != nil {
		t.Fatalf("type on the console: %v", err)
	}
}

// try runs a command and returns its output and exit code. After a lockup it runs the command
// again. It also takes a fresh shell as a lockup: the kernel's message may have come before the
// command.
func (g *guest) try(t *testing.T, command string) (string, int) {
	t.Helper()
	// The shell assembles the marker, so that an echo of the command is not mistaken for it.
	g.send(t, command+`; echo "@@""end $?"`)
	end := regexp.MustCompile(`@@end (\d+)`)
	out := g.until(t, commandTimeout, command, func(out string) bool {
		return end.MatchString(out) || strings.Contains(out, kernelPanic) || strings.Contains(out, banner)
	})
	m := end.FindStringSubmatchIndex(out)
	if m == nil {
		locked := strings.Contains(out, lockup) || !strings.Contains(out, kernelPanic)
		if g.lockups++; !locked || g.lockups > maxLockups {
			t.Fatalf("the machine's kernel ended while it ran %s", command)
		}
		t.Logf("the emulated machine's kernel locked up and has started again:\n%s", g.login(t))
		return g.try(t, command)
	}
	code, err := strconv.Atoi(out[m[2]:m[3]])
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(out[:m[0]], "\r", ""), code
}

// run runs a command that must succeed and returns its output.
func (g *guest) run(t *testing.T, command string) string {
	t.Helper()
	out, code := g.try(t, command)
	if code != 0 {
		t.Fatalf("%s: exit code %d\n%s", command, code, out)
	}
	return out
}

// waitFor repeats a command each second until it succeeds.
func (g *guest) waitFor(t *testing.T, timeout time.Duration, command string) string {
	t.Helper()
	deadline, lockups := time.Now().Add(timeout), g.lockups
	for {
		out, code := g.try(t, command+" || { sleep 1; false; }")
		if code == 0 {
			return out
		}
		if g.lockups > lockups {
			deadline, lockups = time.Now().Add(timeout), g.lockups
		}
		if time.Now().After(deadline) {
			log, _ := g.try(t, "tail -n 40 /var/log/mote.log")
			t.Fatalf("waited %v for %s: exit code %d\n%s\n%s", timeout, command, code, out, log)
		}
	}
}

// cutDuring types a command that does not end by itself, cuts the power when enough returns true
// for its output, and returns the output. A lockup before that is a power cut too, and is reported
// by locked: in either case the data that the guest had not synced is lost.
func (g *guest) cutDuring(t *testing.T, command string, enough func(out string) bool) (out string, locked bool) {
	t.Helper()
	g.send(t, command)
	g.until(t, commandTimeout, command+" to print enough", func(out string) bool {
		return enough(out) || strings.Contains(out, kernelPanic)
	})
	g.cutPower()
	out, _ = g.snapshot()
	if said := strings.Index(out, stuck); said >= 0 {
		t.Logf("the emulated machine's kernel locked up while it ran %s", command)
		return out[:strings.LastIndexByte(out[:said], '\n')+1], true
	}
	if strings.Contains(out, kernelPanic) {
		t.Fatalf("the machine's kernel ended while it ran %s", command)
	}
	return out, false
}

// cutPower sends kill -9 to QEMU.
func (g *guest) cutPower() {
	_ = g.cmd.Process.Kill()
	<-g.ended
}
