package server

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	core "k8s.io/kubernetes/pkg/apis/core"
)

// nodeRangesPlugin is the name of an admission plugin of mote.
// --apiserver-arg=disable-admission-plugins accepts it like the names of upstream's plugins.
const nodeRangesPlugin = "NodePodCIDR"

// nodeRanges gives a node the pod network that it uses when it registers. Without this the
// controller manager's allocator chooses one some moments later. The allocator reads nodes from a
// cache, so it may choose a second network before it sees the first, and kube-apiserver refuses the
// second: that puts three errors into the log of a healthy start. The allocator also does not know
// which network the agent's bridge has. It treats a network that a node already has as used, and
// gives others to other nodes.
type nodeRanges struct {
	*admission.Handler
	ranges map[string]netip.Prefix // pod networks by node
}

// addNodeRanges enables the plugin, unless the user's arguments make the controller manager give
// other networks or none.
func addNodeRanges(opts *options.ServerRunOptions, cfg Config) {
	theirs := []string{"allocate-node-cidrs", "cluster-cidr", "node-cidr-mask-size", "node-cidr-mask-size-ipv4", "cidr-allocator-type"}
	if slices.ContainsFunc(argNames(cfg.ControllerManagerArgs), func(name string) bool { return slices.Contains(theirs, name) }) {
		return
	}
	plugins := opts.Admission.GenericAdmission
	plugins.Plugins.Register(nodeRangesPlugin, func(io.Reader) (admission.Interface, error) {
		return &nodeRanges{Handler: admission.NewHandler(admission.Create), ranges: cfg.NodeRanges}, nil
	})
	plugins.RecommendedPluginOrder = slices.Insert(plugins.RecommendedPluginOrder, 0, nodeRangesPlugin)
}

var _ admission.MutationInterface = (*nodeRanges)(nil)

// Admit implements admission.MutationInterface.
func (n *nodeRanges) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != core.Resource("nodes") || a.GetSubresource() != "" {
		return nil
	}
	node, ok := a.GetObject().(*core.Node)
	if !ok {
		return admission.NewForbidden(a, fmt.Errorf("%T instead of a node", a.GetObject()))
	}
	if given, ok := n.ranges[node.Name]; ok && len(node.Spec.PodCIDRs) == 0 {
		node.Spec.PodCIDRs = []string{given.Masked().String()}
	}
	return nil
}
