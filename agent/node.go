// Package agent is mote's node: containerd, kubelet, kube-proxy, the pod network and images, as
// components of the calling process.
//
// Enter it with New, which validates and touches nothing, then run the five components that Node
// gives: Network first, then Containerd, Images, Kubelet and Proxy. StopContainers and Reset undo what
// a node did and are for a time when no mote runs on the same directories. Check says beforehand what
// would go wrong. A Node's components may run concurrently; each is run once.
//
// Invariants:
//   - A container outlives the process that started it: nothing here kills one, except StopContainers
//     and Reset.
//   - What is changed outside DataDir, RunDir and KubeletDir, and what is mounted on KubeletDir, is written to
//     DataDir/agent/footprint.json before it is changed, so that Reset removes exactly that.
//   - Upstream components cannot be started twice in a process, nor stopped completely: when one
//     ends, the process must end.
//
// Files are listed in README.md.
package agent

import (
	"context"
	"fmt"

	"github.com/mote-k8s/mote/internal/component"
)

// Node is one validated node. Its methods make the components; calling one twice gives two.
type Node struct {
	cfg Config
}

// New validates cfg and the extra arguments of the kubelet and kube-proxy. It touches nothing.
func New(cfg Config) (*Node, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if _, err := newKubeletServer(cfg, host{}); err != nil {
		return nil, err
	}
	if _, _, err := newProxyOptions(cfg, ProxyNFTables, host{}, "127.0.0.1:0"); err != nil {
		return nil, err
	}
	return &Node{cfg: cfg}, nil
}

// Network is the component "network": the bridge with the node's address, forwarding, masquerading
// and the CNI configuration. It is ready when the address can be bound; the rest follows at once. The
// bridge and the rules stay when it stops, because containers live on.
func (n *Node) Network() component.Component {
	return newPart("network", "the bridge is not up", func(ctx context.Context, ready func()) error {
		if err := setUpNetwork(ctx, n.cfg, ready); err != nil {
			return fmt.Errorf("set up the pod network: %w", err)
		}
		<-ctx.Done()
		return nil
	})
}

// Containerd is the component "containerd". It is ready when CRI answers on ContainerdSocket.
func (n *Node) Containerd() component.Component {
	return newPart("containerd", "CRI does not answer", func(ctx context.Context, ready func()) error {
		return runContainerd(ctx, n.cfg, ready)
	})
}

// Images is the component "images": the pause image and the archives in ImagesDir. It needs containerd
// and is ready when a pod can start: when the pause image is there, and what archives there were for a while at most.
func (n *Node) Images() component.Component {
	return newImages(n.cfg)
}

// Kubelet is the component "kubelet". It needs network, containerd, images and an apiserver. Where a controller
// manager runs in the same process, volumes is its Ready: the kubelet initialises its volume plugins
// after that (README.md, "CSI"); else it is nil. The component is ready when the kubelet's /healthz is
// ok; the node's Ready condition follows later.
func (n *Node) Kubelet(volumes func(context.Context) error) component.Component {
	return newPart("kubelet", "http://127.0.0.1:10248/healthz is not ok", func(ctx context.Context, ready func()) error {
		return runKubelet(ctx, n.cfg, volumes, ready)
	})
}

// Proxy is the component "kube-proxy". It needs network and an apiserver and waits for the node object
// by itself. It is ready when its rules are written for the first time.
func (n *Node) Proxy() component.Component {
	return newPart("kube-proxy", "its rules are not written", func(ctx context.Context, ready func()) error {
		return runProxy(ctx, n.cfg, ready)
	})
}
