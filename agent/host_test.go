package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/agent/payload"
)

// The test program runs in four roles: as the test itself; as the same test inside a private host,
// where no other program uses the pods' addresses and mounts; there as a node, a process that can
// be killed; and as a process that imports an archive.
const (
	roleVariable    = "MOTE_TEST_ROLE"
	rolePrivate     = "private"
	roleNode        = "node"
	roleImporter    = "importer"
	payloadVariable = "MOTE_TEST_PAYLOAD"
)

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == roleNode {
		if err := runTestNode(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(roleVariable) == roleImporter {
		if err := runTestImporter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func testConfig(payload string) Config {
	return Config{
		DataDir: "/var/lib/mote", RunDir: "/run/mote", KubeletDir: "/var/lib/kubelet",
		PayloadDir: payload, ImagesDir: "/var/lib/mote/images",
		CredentialsDir: "/var/lib/mote/agent/credentials", Server: "https://127.0.0.1:6443",
		NodeName: "n1", NodeIP: netip.MustParseAddr("10.42.0.1"),
		ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), PodCIDR: netip.MustParsePrefix("10.42.0.0/24"),
		ClusterDNS: netip.MustParseAddr("10.43.0.10"), ClusterDomain: "cluster.local",
		Bridge: "mote0", CNI: CNIBridge, Proxy: ProxyAuto,
	}
}

// runTestImporter imports the archive on standard input.
func runTestImporter() error {
	store, err := OpenImages(ContainerdSocket(testConfig("/p")))
	if err != nil {
		return err
	}
	defer store.Close()
	_, err = store.Import(context.Background(), os.Stdin, ImportOptions{})
	return err
}

// runTestNode runs the components of a node that need no apiserver, until it receives SIGTERM.
func runTestNode() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	node, err := New(testConfig(os.Getenv(payloadVariable)))
	if err != nil {
		return err
	}
	ended := make(chan error, 3)
	for _, part := range []interface {
		Run(context.Context) error
		Ready(context.Context) error
	}{node.Network(), node.Containerd(), node.Images()} {
		go func() { ended <- part.Run(ctx) }()
		readyCtx, cancel := context.WithCancel(ctx)
		failed := make(chan error, 1)
		go func() { failed <- part.Ready(readyCtx) }()
		select {
		case err := <-failed:
			cancel()
			if err != nil {
				return err
			}
		case err := <-ended:
			cancel()
			return err
		}
	}
	fmt.Println("ready")
	for range 3 {
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}

// inPrivateHost runs the calling test again in a private host and returns false there. In the first
// process it returns true when the second run has ended.
func inPrivateHost(t *testing.T) bool {
	t.Helper()
	if os.Getenv(roleVariable) == rolePrivate {
		return false
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	groups := makeTestCgroups(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("testdata/privatehost.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", script, self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), roleVariable+"="+rolePrivate, "MOTE_TEST_CGROUPS="+strings.Join(groups, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	out, err := cmd.CombinedOutput()
	t.Logf("in the private host:\n%s", out)
	if err != nil {
		t.Fatalf("private host: %v", err)
	}
	return true
}

// makeTestCgroups makes a group for the test at the root of each tree. It removes the groups
// afterwards, when the private host's processes have died with its PID namespace.
func makeTestCgroups(t *testing.T) []string {
	t.Helper()
	trees, err := mountedCgroups()
	if err != nil {
		t.Fatal(err)
	}
	var groups []string
	for _, tree := range trees {
		dir, err := os.MkdirTemp(tree.dir, "mote-agent-test-")
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, dir)
		if slices.Contains(tree.controllers, "cpuset") && !tree.unified {
			if err := inheritCpuset(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(func() {
		deadline := time.After(killTimeout)
		for _, group := range groups {
			for removeGroup(group) != nil {
				select {
				case <-deadline:
					t.Errorf("cgroup %s is still in use", group)
					return
				case <-time.After(groupPoll):
				}
			}
		}
	})
	return groups
}

// testPayload returns a directory with the payload. The private host sees it too.
func testPayload(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv(payloadVariable); dir != "" {
		return dir
	}
	dir, err := payload.Unpack(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Setenv(payloadVariable, dir)
	return dir
}
