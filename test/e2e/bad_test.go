package e2e

import (
	"errors"
	"strings"
	"testing"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

// TestBadInput starts mote where it cannot run. It must print one line that says what to do, exit
// with code 1, and leave the host unchanged.
func TestBadInput(t *testing.T) {
	features.Row(t, "A8", "what would stop it is one line that says what to do, and nothing is left half made")
	server := []string{"mote", "server"}
	for _, c := range []struct {
		name    string
		host    cluster.HostConfig
		prepare string // shell, before the state is recorded
		args    []string
		want    []string // parts of the line
	}{
		{
			name:    "port in use",
			prepare: "busybox nc -ll -p 6443 -e cat >/dev/null 2>&1 & until ss -ltn | grep -q 6443; do :; done",
			args:    server, want: []string{":6443", "in use by pid", "--https-listen-port"},
		},
		{name: "unknown flag", args: []string{"mote", "server", "--data-dri=/x"}, want: []string{"--data-dri", "--data-dir"}},
		{name: "unknown verb", args: []string{"mote", "sevrer"}, want: []string{"sevrer", "server"}},
		{name: "unknown apiserver argument", args: append(server, "--apiserver-arg=no-such=1"), want: []string{"no-such", "apiserver"}},
		{name: "unknown controller manager argument", args: append(server, "--controller-manager-arg=no-such=1"), want: []string{"no-such", "controller-manager"}},
		{name: "unknown scheduler argument", args: append(server, "--scheduler-arg=no-such=1"), want: []string{"no-such", "scheduler"}},
		{name: "unknown kubelet argument", args: append(server, "--kubelet-arg=no-such=1"), want: []string{"no-such", "kubelet"}},
		{name: "unknown proxy argument", args: append(server, "--proxy-arg=no-such=1"), want: []string{"no-such", "proxy"}},
		{name: "wrong value of an upstream argument", args: append(server, "--kubelet-arg=max-pods=many"), want: []string{"max-pods", "many"}},
		{name: "wrong value", args: append(server, "--https-listen-port=99999"), want: []string{"--https-listen-port", "99999"}},
		{
			name:    "broken configuration file",
			prepare: "mkdir /etc/mote; echo 'data-dir: [' >/etc/mote/config.yaml",
			args:    server, want: []string{"/etc/mote/config.yaml"},
		},
		{
			name:    "unknown key in a configuration file",
			prepare: "mkdir -p /etc/mote/config.yaml.d; echo 'data-dri: /x' >/etc/mote/config.yaml.d/10.yaml",
			args:    server, want: []string{"10.yaml", "data-dri", "data-dir"},
		},
		{
			name:    "full disk",
			prepare: "mount -t tmpfs -o size=1m small /var/lib/mote",
			args:    server, want: []string{"/var/lib/mote", "free", "--data-dir"},
		},
		{
			name:    "read-only disk",
			prepare: "mount -o remount,ro /var/lib/mote",
			args:    server, want: []string{"/var/lib/mote", "read-only", "--data-dir"},
		},
		{
			name:    "data directory is a file",
			prepare: "touch /tmp/file",
			args:    append(server, "--data-dir=/tmp/file"), want: []string{"/tmp/file", "--data-dir"},
		},
		{
			name:    "no nft and no iptables",
			prepare: "rm -f $(command -v nft) /usr/sbin/iptables* /usr/sbin/xtables* /sbin/iptables*",
			args:    server, want: []string{"nft", "iptables", "install"},
		},
		{
			name:    "no mount",
			prepare: "rm -f $(command -v mount)",
			args:    server, want: []string{"mount", "install"},
		},
		{name: "no cgroups", host: cluster.HostConfig{NoCgroups: true}, args: server, want: []string{"cgroup", "mount"}},
		{
			name: "not root",
			args: append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, server...),
			want: []string{"root", "sudo"},
		},
		{name: "run with a missing image", args: []string{"mote", "run", "--image=/no/such.tar", "--", "true"}, want: []string{"/no/such.tar", "no such file"}},
		{name: "run with an image that is none", args: []string{"mote", "run", "--image=/etc/passwd", "--", "true"}, want: []string{"/etc/passwd: not an image archive"}},
		{name: "status without a server", args: []string{"mote", "status"}, want: []string{"mote server"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := cluster.NewHost(t, c.host)
			if c.prepare != "" {
				h.Run(t, "sh", "-c", c.prepare)
			}
			before := h.State(t)
			r := h.Try(t, nil, c.args...)
			if r.Code != 1 {
				t.Errorf("exit code %d, want 1", r.Code)
			}
			if strings.Count(r.Stderr, "\n") != 1 || !strings.HasPrefix(r.Stderr, "mote: ") {
				t.Errorf("stderr is not one line that begins with \"mote: \":\n%s", r.Stderr)
			}
			wantContains(t, "stderr", r.Stderr, c.want...)
			if diff := cluster.Diff(before, h.State(t)); diff != "" {
				t.Errorf("mote left something half made:\n%s", diff)
			}
		})
	}
}

// testSecondServer starts another mote on the data directory of a running one.
func testSecondServer(t *testing.T, h *cluster.Host) {
	features.Row(t, "A8", "a second server on the same data directory is refused")
	before := h.State(t)
	cluster.Wait(t, podTimeout, "the pods that have ended to leave nothing", func() error {
		last := before
		before = h.State(t)
		if diff := cluster.Diff(last, before); diff != "" {
			return errors.New("the host changes by itself:\n" + diff)
		}
		return nil
	})
	r := h.Try(t, nil, "mote", "server", "--https-listen-port=7443")
	if r.Code != 1 || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("%+v, want exit code 1 and one line", r)
	}
	wantContains(t, "stderr", r.Stderr, "/var/lib/mote", "in use", "pid")
	for line := range strings.Lines(cluster.Diff(before, h.State(t))) {
		// Pods come and go meanwhile; a second server would create links, mounts and files.
		if !strings.HasPrefix(line, "+ process") && !strings.HasPrefix(line, "- process") {
			t.Errorf("the second server changed: %s", line)
		}
	}
	testReadyz(t, h)
}
