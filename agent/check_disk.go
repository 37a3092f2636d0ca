package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"
)

// checkDisks compares what is free with what the kubelet keeps free: with less it takes no pods, and evicts.
func checkDisks(c Config) Finding {
	const name = "disk-space"
	limits, err := evictionLimits(c)
	if err != nil {
		return found(name, "", err, StateFail)
	}
	var short []string
	for _, limit := range limits {
		fsName, _, _ := strings.Cut(string(limit.Signal), ".")
		dir, ok := map[string]string{"nodefs": c.KubeletDir, "imagefs": c.containerdRoot()}[fsName]
		if !ok {
			continue // memory, processes
		}
		dir = nearestDir(dir)
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return found(name, "", fmt.Errorf("look at the disk of %s: %w", dir, err), StateWarn)
		}
		if problem := shortOf(limit, diskOf(st)); problem != "" {
			short = append(short, dir+" "+problem)
		}
	}
	if len(short) > 0 {
		return Finding{name, StateWarn, strings.Join(short, "; ") +
			"; the kubelet takes no pods then: free some, or move the limits, as in --kubelet-arg='eviction-hard=nodefs.available<1%,imagefs.available<1%'"}
	}
	return Finding{name, StateOK, "more is free than the kubelet keeps free"}
}

// evictionLimits are the hard ones that the kubelet of c will have.
func evictionLimits(c Config) ([]evictionapi.Threshold, error) {
	h, err := detectHost()
	if err != nil {
		return nil, err
	}
	kubelet, err := newKubeletServer(c, h)
	if err != nil {
		return nil, err
	}
	limits, err := eviction.ParseThresholdConfig(nil, kubelet.EvictionHard, nil, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("kubelet argument eviction-hard: %w", err)
	}
	return limits, nil
}

// disk is what a file system has: bytes, and inodes, of which some have no fixed number (0).
type disk struct{ size, free, inodes, freeInodes uint64 }

func diskOf(st unix.Statfs_t) disk {
	return disk{st.Blocks * uint64(st.Frsize), st.Bavail * uint64(st.Frsize), st.Files, st.Ffree}
}

// shortOf says how little d has when that is below limit.
func shortOf(limit evictionapi.Threshold, d disk) string {
	all, free, format, what := d.size, d.free, resource.BinarySI, ""
	if strings.HasSuffix(string(limit.Signal), "inodesFree") {
		all, free, format, what = d.inodes, d.freeInodes, resource.DecimalSI, " inodes"
	}
	if all == 0 {
		return ""
	}
	wanted := evictionapi.GetThresholdQuantity(limit.Value, resource.NewQuantity(int64(all), format))
	if free >= uint64(wanted.Value()) {
		return ""
	}
	keep := wanted.String()
	if limit.Value.Quantity == nil {
		keep = fmt.Sprintf("%.3g %%", limit.Value.Percentage*100)
	}
	return fmt.Sprintf("has %.1f %% of its%s free, less than %s=%s", 100*float64(free)/float64(all), what, limit.Signal, keep)
}

// nearestDir is dir, or as it may not exist yet, the nearest parent that does: its file system is dir's.
func nearestDir(dir string) string {
	for dir != "/" {
		info, err := os.Stat(dir)
		if err == nil && info.IsDir() || err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}
