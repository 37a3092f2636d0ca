package cluster

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m, "e2e") }

func TestHostIsPrivate(t *testing.T) {
	h := NewHost(t, HostConfig{Name: "alone"})
	if got := h.Run(t, "hostname"); got != "alone\n" {
		t.Errorf("hostname %q", got)
	}
	h.Run(t, "sh", "-c", "echo x >/etc/private; ip link add br9 type bridge; mkdir /sys/fs/cgroup/*/sub 2>/dev/null || mkdir /sys/fs/cgroup/sub")
	if _, err := os.Stat("/etc/private"); err == nil {
		t.Error("a file that was written in the host reached the machine")
	}
	if _, err := os.Stat(h.Path("/.changes/etc/private")); err != nil {
		t.Error("a file that was written in the host is not among its changes:", err)
	}
	if got := h.Run(t, "cat", "/etc/resolv.conf"); got != "" {
		t.Errorf("resolv.conf holds %q", got)
	}
	if got := h.Run(t, "ip", "route", "show", "default"); got != "" {
		t.Errorf("default route %q", got)
	}
	for line := range strings.Lines(h.Run(t, "cat", "/proc/self/cgroup")) {
		if !strings.HasSuffix(line, ":/\n") && !strings.HasSuffix(line, ":/host\n") {
			t.Errorf("process is not at the root of its cgroup namespace: %s", line)
		}
	}
	h.Run(t, "sh", "-c", "sleep 1000 >/dev/null 2>&1 &")
	Wait(t, 10*time.Second, "the orphan's new parent", func() error {
		if !strings.Contains(h.Run(t, "ps", "-eo", "ppid,comm"), "1 sleep") {
			return errors.New("it is not a child of PID 1")
		}
		return nil
	})
}

func TestStateSeesWhatIsLeft(t *testing.T) {
	h := NewHost(t, HostConfig{})
	before := h.State(t)
	if diff := Diff(before, h.State(t)); diff != "" {
		t.Errorf("two states of an idle host differ:\n%s", diff)
	}
	h.Run(t, "sh", "-c", `echo x >/etc/left; ip link add br9 type bridge; nft add table ip left
		mkdir /var/lib/mote/left; touch /var/lib/mote/left/file; mkdir /opt/empty; mount -t tmpfs left /mnt
		sleep 1000 >/dev/null 2>&1 &`)
	diff := Diff(before, h.State(t))
	for _, want := range []string{"/etc/left", "br9", "table ip left", "left/file", "opt/empty", "/mnt", "sleep 1000"} {
		if !strings.Contains(diff, want) {
			t.Errorf("%s is left but not in:\n%s", want, diff)
		}
	}
}
