package agent

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// host holds the limits of the machine. Each component detects them once, when it starts.
type host struct {
	// restrictOOM means that CAP_SYS_RESOURCE is missing. Without it no process of the node may
	// lower an oom_score_adj below oomScore, the one of this process, or raise a limit.
	restrictOOM bool
	oomScore    int
	// maxFiles is the highest limit of open files that this process may set for itself. 0 means no
	// limit.
	maxFiles int64
	// capacity holds the resources that mote and the pods share.
	capacity capacity
}

func detectHost() (host, error) {
	h := host{}
	allowed, err := hasCapability(unix.CAP_SYS_RESOURCE)
	if err != nil {
		return h, err
	}
	h.restrictOOM = !allowed
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return h, fmt.Errorf("read own oom_score_adj: %w", err)
	}
	if h.oomScore, err = strconv.Atoi(strings.TrimSpace(string(score))); err != nil {
		return h, fmt.Errorf("read own oom_score_adj: %w", err)
	}
	if h.restrictOOM {
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return h, fmt.Errorf("read own limit of open files: %w", err)
		}
		h.maxFiles = int64(min(limit.Max, math.MaxInt64))
	}
	if h.capacity, err = detectCapacity(); err != nil {
		return h, err
	}
	return h, nil
}

// lowestOOMScore returns score, or the lowest oom_score_adj that a daemon of this node can have, if
// that is higher.
func (h host) lowestOOMScore(score int) int {
	if h.restrictOOM && score < h.oomScore {
		return h.oomScore
	}
	return score
}

// hasCapability checks the effective set of this process.
func hasCapability(capability uint) (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("read own capabilities: %w", err)
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0, nil
}

// chooseProxyMode turns Config.Proxy into a mode that works on this machine.
func chooseProxyMode(wanted string) (string, error) {
	switch wanted {
	case ProxyNone:
		return ProxyNone, nil
	case ProxyNFTables:
		if err := nftablesUsable(); err != nil {
			return "", fmt.Errorf("cannot use proxy mode nftables: %w", err)
		}
		return ProxyNFTables, nil
	case ProxyIPTables:
		if err := iptablesUsable(); err != nil {
			return "", fmt.Errorf("cannot use proxy mode iptables: %w", err)
		}
		return ProxyIPTables, nil
	}
	nftErr := nftablesUsable()
	if nftErr == nil {
		return ProxyNFTables, nil
	}
	iptErr := iptablesUsable()
	if iptErr == nil {
		return ProxyIPTables, nil
	}
	return "", fmt.Errorf("cannot write packet rules: %w; %w; install the package nftables or iptables", nftErr, iptErr)
}

// nftablesUsable asks nft whether the kernel would accept a table, without making one.
func nftablesUsable() error {
	if _, err := exec.LookPath("nft"); err != nil {
		return fmt.Errorf("the program nft is missing")
	}
	if _, err := knftables.New(knftables.IPv4Family, nftTable); err != nil {
		return fmt.Errorf("nft does not work here: %w", err)
	}
	return nil
}

func iptablesUsable() error {
	for _, program := range []string{"iptables", "iptables-save", "iptables-restore"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("the program %s is missing", program)
		}
	}
	out, err := exec.Command("iptables", "-w", "-t", "nat", "-S").CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables does not work here: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
