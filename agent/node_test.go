package agent

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestContainersOutliveTheNode starts a pod through CRI, kills the node, starts it again and resets
// it, on a private host.
func TestContainersOutliveTheNode(t *testing.T) {
	payload := testPayload(t)
	if inPrivateHost(t) {
		return
	}
	config := testConfig(payload)
	before := machineState(t)
	node := startTestNode(t)

	listener, err := net.Listen("tcp", net.JoinHostPort(config.NodeIP.String(), "0"))
	require.NoError(t, err, "the node's address cannot be bound before any pod exists")
	defer listener.Close()
	conn, err := net.DialTimeout("tcp", listener.Addr().String(), time.Second)
	require.NoError(t, err, "the node's address is not reached over a bridge without ports")
	conn.Close()

	store, err := OpenImages(ContainerdSocket(config))
	require.NoError(t, err)
	images, err := store.List(t.Context())
	require.NoError(t, err)
	require.NoError(t, store.Close())
	require.Len(t, images, 1)
	require.Equal(t, PauseImage, images[0].Name)
	require.True(t, images[0].Pinned)

	sandbox, container := startPod(t, config)
	status := sandboxStatus(t, config, sandbox)
	require.Equal(t, runtimeapi.PodSandboxState_SANDBOX_READY, status.State)
	require.True(t, config.PodCIDR.Contains(mustAddr(t, status.Network.Ip)))
	first := containerPIDs(t)
	require.Len(t, first, 2)

	require.NoError(t, node.Process.Kill())
	_ = node.Wait()
	require.Equal(t, first, containerPIDs(t), "a killed node took a container with it")
	node = startTestNode(t)
	require.Equal(t, runtimeapi.PodSandboxState_SANDBOX_READY, sandboxStatus(t, config, sandbox).State)
	require.Equal(t, runtimeapi.ContainerState_CONTAINER_RUNNING, containerState(t, config, container))
	require.Equal(t, first, containerPIDs(t))

	require.NoError(t, node.Process.Signal(syscall.SIGTERM))
	require.NoError(t, node.Wait(), "%s", node.Stderr)
	require.Equal(t, first, containerPIDs(t), "a stopped node took a container with it")

	require.NoError(t, StopContainers(t.Context(), config))
	require.Empty(t, containerPIDs(t))
	node = startTestNode(t)
	require.Equal(t, runtimeapi.PodSandboxState_SANDBOX_NOTREADY, sandboxStatus(t, config, sandbox).State)
	require.Equal(t, runtimeapi.ContainerState_CONTAINER_EXITED, containerState(t, config, container))
	startPod(t, config)
	require.NoError(t, node.Process.Signal(syscall.SIGTERM))
	require.NoError(t, node.Wait(), "%s", node.Stderr)

	require.NoError(t, Reset(t.Context(), config))
	require.NoError(t, Reset(t.Context(), config), "a second reset")
	require.NoError(t, os.RemoveAll(config.DataDir))
	require.NoError(t, os.RemoveAll(config.RunDir))
	require.NoError(t, os.RemoveAll("/run/mote-test-logs"))
	require.Equal(t, before, machineState(t), "reset left something")
}

// startTestNode starts a node and returns when its components are ready.
func startTestNode(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+roleNode)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	started := time.Now()
	require.NoError(t, cmd.Start())
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		_ = cmd.Wait()
		t.Fatalf("the node did not start: %s", stderr.String())
	}
	t.Logf("node ready after %s", time.Since(started).Round(time.Millisecond))
	return cmd
}

func criClient(t *testing.T, config Config) runtimeapi.RuntimeServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+ContainerdSocket(config), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return runtimeapi.NewRuntimeServiceClient(conn)
}

// startPod starts a pod sandbox with one container, both from the pause image.
func startPod(t *testing.T, config Config) (sandbox, container string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := criClient(t, config)
	// The node is ready before its CNI configuration is there. The kubelet waits for it too.
	require.Eventually(t, func() bool {
		answer, err := client.Status(ctx, &runtimeapi.StatusRequest{})
		return err == nil && slices.ContainsFunc(answer.Status.Conditions, func(c *runtimeapi.RuntimeCondition) bool {
			return c.Type == runtimeapi.NetworkReady && c.Status
		})
	}, time.Minute, 10*time.Millisecond)
	started := time.Now()
	name := strconv.FormatInt(started.UnixNano(), 36)
	pod := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		LogDirectory: "/run/mote-test-logs",
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    podCgroup + "/pod" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{}},
		},
	}
	run, err := client.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	require.NoError(t, err)
	create, err := client.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: run.PodSandboxId, SandboxConfig: pod,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
			Image:    &runtimeapi.ImageSpec{Image: PauseImage},
			LogPath:  "main.log",
		},
	})
	require.NoError(t, err)
	_, err = client.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: create.ContainerId})
	require.NoError(t, err)
	t.Logf("pod started in %s", time.Since(started).Round(time.Millisecond))
	return run.PodSandboxId, create.ContainerId
}

func containerState(t *testing.T, config Config, id string) runtimeapi.ContainerState {
	t.Helper()
	response, err := criClient(t, config).ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	require.NoError(t, err)
	return response.Status.State
}

func sandboxStatus(t *testing.T, config Config, id string) *runtimeapi.PodSandboxStatus {
	t.Helper()
	response, err := criClient(t, config).PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	require.NoError(t, err)
	return response.Status
}

// containerPIDs lists the processes of containers.
func containerPIDs(t *testing.T) []int {
	t.Helper()
	trees, err := mountedCgroups()
	require.NoError(t, err)
	pids, err := processesIn(trees, podCgroup)
	require.NoError(t, err)
	slices.Sort(pids)
	return pids
}

// machineState returns the state that a reset must restore: mounts, links, packet rules, cgroups
// and files.
func machineState(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	state["mounts"] = string(mounts)
	links, err := netlink.LinkList()
	require.NoError(t, err)
	for _, link := range links {
		state["links"] += link.Attrs().Name + " "
	}
	rules, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	require.NoError(t, err)
	state["rules"] = string(rules)
	for _, root := range []string{"/run", "/var/lib", "/var/log", "/etc/mote", "/etc/cni", "/opt", "/sys/fs/cgroup"} {
		err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			if err == nil && (entry.IsDir() || !strings.HasPrefix(path, "/sys")) {
				state["files"] += path + "\n"
			}
			return nil
		})
		require.NoError(t, err)
	}
	return state
}
