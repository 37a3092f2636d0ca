// Package agent is mote's node: containerd, kubelet, kube-proxy, the pod network and images, as
// components of the calling process.
//
// Enter it with New, which only validates. Then run the five components that the methods of Node
// return: Network first, then Containerd, Images, Kubelet and Proxy. StopContainers and Reset undo
// the work of a node; no mote may run on the same directories then. Check finds problems before a
// start. The components of a Node may run concurrently. Each runs once.
//
// Invariants:
//   - A container outlives the process that started it: only StopContainers and Reset end
//     containers.
//   - Every change outside DataDir, RunDir and KubeletDir, and every mount on KubeletDir, is
//     recorded in DataDir/agent/footprint.json before it is made. So Reset removes exactly these
//     changes.
//   - Upstream components can neither be started twice in a process nor be stopped completely: when
//     one ends, the process must end.
//
// README.md lists the files.
package agent

import (
	"context"
	"fmt"

	"github.com/mote-k8s/mote/internal/component"
)

// Node is one validated node. Its methods make the components. Two calls of a method make two
// components.
type Node struct {
	cfg Config
}

// New validates cfg and the extra arguments of the kubelet and kube-proxy. It does not touch the
// machine.
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

// Network returns the component "network": the bridge with the node's address, forwarding,
// masquerading and the CNI configuration. It is ready when the address can be bound. The rest
// follows at once. The bridge and the rules stay when the component stops, because containers go
// on.
func (n *Node) Network() component.Component {
	return newPart("network", "the bridge is not up", func(ctx context.Context, ready func()) error {
		if err := setUpNetwork(ctx, n.cfg, ready); err != nil {
			return fmt.Errorf("set up the pod network: %w", err)
		}
		<-ctx.Done()
		return nil
	})
}

// Containerd returns the component "containerd". It is ready when CRI answers on ContainerdSocket.
func (n *Node) Containerd() component.Component {
	return newPart("containerd", "CRI does not answer", func(ctx context.Context, ready func()) error {
		return runContainerd(ctx, n.cfg, ready)
	})
}

// Images returns the component "images": the pause image and the archives in ImagesDir. It needs
// containerd. It is ready when a pod can start: the pause image is there, and the archives are
// imported or have taken longer than half a minute.
func (n *Node) Images() component.Component {
	return newImages(n.cfg)
}

// Kubelet returns the component "kubelet". It needs network, containerd, images and an apiserver.
// If a controller manager runs in the same process, volumes is the Ready of that component: the
// kubelet initialises its volume plugins after it (README.md, "CSI"). Otherwise volumes is nil. The
// component is ready when the kubelet's /healthz is ok. The node's Ready condition follows later.
func (n *Node) Kubelet(volumes func(context.Context) error) component.Component {
	return newPart("kubelet", "http://127.0.0.1:10248/healthz is not ok", func(ctx context.Context, ready func()) error {
		return runKubelet(ctx, n.cfg, volumes, ready)
	})
}

// Proxy returns the component "kube-proxy". It needs network and an apiserver, and itself waits for
// the node object. It is ready when its rules are written for the first time.
func (n *Node) Proxy() component.Component {
	return newPart("kube-proxy", "its rules are not written", func(ctx context.Context, ready func()) error {
		return runProxy(ctx, n.cfg, ready)
	})
}
