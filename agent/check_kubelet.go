package agent

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"

	"github.com/mote-k8s/mote/internal/disk"
)

// checkKubelet checks the kubelet's arguments and compares the free disk space with the space that
// the kubelet keeps free. With less than that, the kubelet accepts no pods and evicts running ones.
func checkKubelet(c Config) []Finding {
	limits, err := evictionLimits(c)
	arguments := found("kubelet-args", "understood", err, StateFail)
	if err != nil {
		return []Finding{arguments}
	}
	return []Finding{arguments, checkDisks(c, limits)}
}

func checkDisks(c Config, limits []evictionapi.Threshold) Finding {
	const name = "disk-space"
	var short []string
	for _, limit := range limits {
		dir := limitedDir(c, limit.Signal)
		if dir == "" {
			continue
		}
		has, err := disk.Of(dir)
		if err != nil {
			return found(name, "", err, StateWarn)
		}
		if problem := shortOf(limit, has); problem != "" {
			short = append(short, problem)
		}
	}
	if len(short) > 0 {
		slices.Sort(short) // they come in random order
		return Finding{name, StateWarn, strings.Join(short, "; ") +
			`; the kubelet takes no pods then, and evicts: free some, or move the limit with mote server --kubelet-arg='evictionHard={"nodefs.available":"1%","imagefs.available":"1%"}'`}
	}
	return Finding{name, StateOK, "more is free than the kubelet keeps free"}
}

// evictionLimits returns the hard eviction limits that the kubelet of c will have.
func evictionLimits(c Config) ([]evictionapi.Threshold, error) {
	kubelet, err := newKubeletServer(c, host{})
	if err != nil {
		return nil, err
	}
	limits, err := eviction.ParseThresholdConfig(nil, kubelet.EvictionHard, nil, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("kubelet argument evictionHard: %w", err)
	}
	return limits, nil
}

// limitedDir returns the directory whose disk a limit applies to, or "" if it is no limit of disks.
func limitedDir(c Config, signal evictionapi.Signal) string {
	switch signal {
	case evictionapi.SignalNodeFsAvailable, evictionapi.SignalNodeFsInodesFree:
		return c.KubeletDir
	case evictionapi.SignalImageFsAvailable, evictionapi.SignalImageFsInodesFree:
		return c.data().Containerd()
	}
	return ""
}

// shortOf returns a description of the free space if it is below limit, else "".
func shortOf(limit evictionapi.Threshold, has disk.Info) string {
	all, free, format, what := has.Size, has.Free, resource.BinarySI, ""
	if strings.HasSuffix(string(limit.Signal), "inodesFree") {
		all, free, format, what = has.Inodes, has.FreeInodes, resource.DecimalSI, " inodes"
	}
	if all == 0 {
		return "" // the file system has no fixed number, so a comparison is impossible
	}
	wanted := evictionapi.GetThresholdQuantity(limit.Value, resource.NewQuantity(int64(all), format))
	if free >= uint64(wanted.Value()) {
		return ""
	}
	if limit.Value.Quantity == nil {
		return fmt.Sprintf("%s has %.1f %%%s free, less than %s=%.3g%%",
			has.Dir, 100*float64(free)/float64(all), what, limit.Signal, limit.Value.Percentage*100)
	}
	return fmt.Sprintf("%s has %s%s free, less than %s=%s", has.Dir, resource.NewQuantity(int64(free), format), what, limit.Signal, wanted)
}
