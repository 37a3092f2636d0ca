package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/mote-k8s/mote/internal/disk"
	"github.com/mote-k8s/mote/internal/limit"
)

// State grades a Finding.
type State string

// A node starts with warnings. With a failure it does not start, or does not work.
const (
	StateOK   State = "ok"
	StateWarn State = "warn"
	StateFail State = "fail"
)

// Finding describes one thing that a node needs from the machine, and the remedy if it is missing.
type Finding struct {
	Name    string `json:"name"`
	State   State  `json:"state"`
	Message string `json:"message"`
}

func found(name, message string, err error, otherwise State) Finding {
	if err != nil {
		return Finding{name, otherwise, err.Error()}
	}
	return Finding{name, StateOK, message}
}

// Check inspects the machine before a node is started on it. It makes no lasting change.
func Check(c Config) []Finding {
	if os.Geteuid() != 0 {
		return []Finding{{"root", StateFail, "mote must run as root; try sudo"}}
	}
	findings := []Finding{
		{"root", StateOK, "running as root"},
		checkKernel(),
		checkCgroups(),
		found("directories", "containers can be started below "+c.DataDir+", "+c.RunDir+" and "+c.KubeletDir, checkPaths(c), StateFail),
		checkOverlay(c),
		checkInterfaces(),
		checkRules(c),
		checkBridgeFilter(),
		checkPrograms(),
		checkFiles(),
		checkDescriptors(limit.MaxDescriptors()),
		found("kubelet-dir", c.KubeletDir+" is free or ours", kubeletDirOwner(c), StateFail),
		checkOOM(),
		checkSeccomp(),
		checkPropagation(),
	}
	findings = append(findings, checkKubelet(c)...)
	if c.CNI == CNIBridge {
		findings = append(findings, found("pod-network", c.ClusterCIDR.String()+" is not used here", podNetworkFree(c), StateFail))
	}
	return findings
}

// checkDescriptors compares the limit of open files with the number that many clients need. Clients
// from outside get half of the limit.
func checkDescriptors(have int) Finding {
	const name = "open-files"
	if have < limit.Recommended {
		return Finding{name, StateWarn, fmt.Sprintf("the limit is %d, and half of it is for clients from outside: raise it to %d (ulimit -n, LimitNOFILE=) for many clients",
			have, limit.Recommended)}
	}
	return Finding{name, StateOK, fmt.Sprintf("the limit is %d", have)}
}

// oldestKernel is the minimum version in README.md: containerd and the kubelet use features of that
// time.
const oldestKernel = "5.4"

func checkKernel() Finding {
	const name = "kernel"
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return found(name, "", fmt.Errorf("ask for the kernel's version: %w", err), StateWarn)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	running, err := version.ParseGeneric(release)
	if err != nil {
		return found(name, "", fmt.Errorf("kernel %s: %w", release, err), StateWarn)
	}
	if running.LessThan(version.MustParseGeneric(oldestKernel)) {
		return Finding{name, StateWarn, fmt.Sprintf("Linux %s is older than %s: some pods may not start; upgrade it", release, oldestKernel)}
	}
	return Finding{name, StateOK, "Linux " + release}
}

func checkCgroups() Finding {
	const name = "cgroups"
	trees, err := mountedCgroups()
	if err != nil {
		return found(name, "", err, StateFail)
	}
	if missing := missingControllers(trees); len(missing) > 0 {
		return Finding{name, StateFail, "controllers missing: " + strings.Join(missing, ", ") +
			"; mount cgroups on /sys/fs/cgroup and enable them (kernel parameters, delegation)"}
	}
	for _, tree := range trees {
		if tree.unified && len(tree.controllers) > 0 {
			return Finding{name, StateOK, "cgroup v2 with all controllers"}
		}
	}
	return Finding{name, StateOK, "cgroup v1 with all controllers"}
}

func checkOverlay(c Config) Finding {
	const name = "overlayfs"
	on, err := disk.Of(c.DataDir)
	if err != nil {
		return found(name, "", err, StateWarn)
	}
	if err := overlayutils.Supported(on.Dir); err != nil {
		return Finding{name, StateWarn, fmt.Sprintf("not on %s: images and containers are copied whole (%v)", on.Dir, err)}
	}
	return Finding{name, StateOK, "works on " + on.Dir}
}

// checkInterfaces makes a bridge and a veth pair in a network namespace of its own, which ends with
// its thread.
func checkInterfaces() Finding {
	result := make(chan error, 1)
	go onDisposableThread(func() { result <- tryInterfaces() })
	return found("interfaces", "bridge and veth work", <-result, StateFail)
}

// onDisposableThread runs f, which makes its thread unusable for other goroutines, on a thread that
// ends with its goroutine. It avoids the process' first thread: that one never ends, and /proc/self
// shows its namespaces as those of the whole process.
func onDisposableThread(f func()) {
	runtime.LockOSThread() // never unlocked for f: the thread ends with the goroutine
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	// While this thread is locked, another goroutine runs on another thread.
	done := make(chan struct{})
	go func() {
		defer close(done)
		onDisposableThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

func tryInterfaces() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("cannot make a network namespace: %w; the kernel or the container mote runs in forbids it", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "check0"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("cannot make a bridge: %w; load the kernel module bridge", err)
	}
	attrs.Name = "check1"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "check2"}); err != nil {
		return fmt.Errorf("cannot make a veth pair: %w; load the kernel module veth", err)
	}
	return nil
}

func checkRules(c Config) Finding {
	const name = "packet-rules"
	mode, err := packetRules(c)
	if err != nil {
		return found(name, "", err, StateFail)
	}
	return Finding{name, StateOK, "kube-proxy and the pod network use " + mode}
}

func checkBridgeFilter() Finding {
	if _, err := os.Stat(sysctlBridgeFilter); err == nil {
		return Finding{"br-netfilter", StateOK, "loaded"}
	}
	if err := exec.Command("modprobe", "-q", "-n", bridgeFilterModule).Run(); err != nil {
		return Finding{"br-netfilter", StateOK, "cannot be loaded: pods reach each other through the node"}
	}
	return Finding{"br-netfilter", StateOK, "is loaded at start"}
}

func checkPrograms() Finding {
	var missing []string
	for _, program := range []string{"mount", "umount"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	if len(missing) > 0 {
		return Finding{"programs", StateFail, "missing: " + strings.Join(missing, ", ") + "; install the package mount (util-linux)"}
	}
	return Finding{"programs", StateOK, "mount and umount are there"}
}

// checkFiles finds missing files on machines that were put together by hand. The kubelet looks for
// a user "kubelet" that owns ranges of user IDs, and does not start if it cannot read the list of
// users. containerd starts no pod without a hosts file, with which each pod's own hosts file
// begins.
func checkFiles() Finding {
	const name = "files"
	needed := []string{"/etc/passwd", "/etc/hosts"}
	for _, file := range needed {
		if _, err := os.Stat(file); err != nil {
			return Finding{name, StateFail, fmt.Sprintf("missing: %v; make it, it may be empty", err)}
		}
	}
	return Finding{name, StateOK, strings.Join(needed, " and ") + " are there"}
}

func checkOOM() Finding {
	const name = "cap-sys-resource"
	allowed, err := hasCapability(unix.CAP_SYS_RESOURCE)
	if err != nil {
		return found(name, "", err, StateWarn)
	}
	if !allowed {
		return Finding{name, StateWarn, "missing: under memory pressure the kernel may end mote before a pod"}
	}
	return Finding{name, StateOK, "there"}
}

func checkSeccomp() Finding {
	if _, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail"); err != nil {
		return Finding{"seccomp", StateWarn, "the kernel has none: pods with a seccomp profile do not start"}
	}
	return Finding{"seccomp", StateOK, "there"}
}

// checkPropagation checks whether mounts below / reach pods (CSI drivers, mountPropagation).
func checkPropagation() Finding {
	const name = "mount-propagation"
	mounts, err := readMounts()
	if err != nil {
		return found(name, "", err, StateWarn)
	}
	if onShared(mounts, "/") {
		return Finding{name, StateOK, "/ is shared"}
	}
	return Finding{name, StateWarn, "/ is not shared: pods that need mountPropagation outside the kubelet's directory do not start; run mount --make-rshared /"}
}

// podNetworkFree fails if another interface has an address inside the pod network.
func podNetworkFree(c Config) error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, iface := range interfaces {
		addrs, err := iface.Addrs()
		if err != nil || iface.Name == c.Bridge {
			continue
		}
		for _, addr := range addrs {
			prefix, err := netip.ParsePrefix(addr.String())
			if err == nil && prefix.Overlaps(c.ClusterCIDR) {
				errs = append(errs, fmt.Errorf("%s of interface %s overlaps the pod network %s; set another --cluster-cidr", prefix, iface.Name, c.ClusterCIDR))
			}
		}
	}
	return errors.Join(errs...)
}
