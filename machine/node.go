package machine

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	v1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// NodeState is the state of this node according to the cluster.
type NodeState struct {
	Name   string `json:"name"`
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
	// Trouble lists bad conditions, such as DiskPressure. While there are any, the node takes no
	// pods.
	Trouble []string `json:"trouble,omitempty"`
}

// nodeWatch reads this node's object from the apiserver.
type nodeWatch struct {
	name  string
	since time.Time // a heartbeat from before is from a previous run
	nodes v1.NodeInterface
	pods  v1.PodInterface // of all namespaces
}

// newNodeWatch connects as the administrator, with certificate files: a client reads files again
// when they are renewed, and never a kubeconfig that contains the certificates.
func (m *Machine) newNodeWatch(since time.Time) (*nodeWatch, error) {
	client, err := v1.NewForConfig(m.addonsConfig().Access.Admin("status"))
	if err != nil {
		return nil, fmt.Errorf("make client for %s: %w", m.serverURL(), err)
	}
	return &nodeWatch{m.NodeName, since, client.Nodes(), client.Pods(metav1.NamespaceAll)}, nil
}

// state reads the node's state once.
func (w *nodeWatch) state(ctx context.Context) NodeState {
	node, err := w.nodes.Get(ctx, w.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return NodeState{Name: w.name, Reason: "not registered yet"}
	case err != nil:
		return NodeState{Name: w.name, Reason: "the API does not answer"}
	}
	return w.judge(node)
}

func (w *nodeWatch) judge(node *corev1.Node) NodeState {
	s := NodeState{Name: w.name, Reason: "no Ready condition yet"}
	for _, c := range node.Status.Conditions {
		// Heartbeats have a resolution of one second.
		fresh := !c.LastHeartbeatTime.Time.Before(w.since.Truncate(time.Second))
		switch c.Type {
		case corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure:
			if fresh && c.Status == corev1.ConditionTrue {
				s.Trouble = append(s.Trouble, pressure(c))
			}
			continue
		case corev1.NodeReady:
		default: // set by components other than the kubelet
			continue
		}
		s.Reason = c.Message
		if s.Ready = fresh && c.Status == corev1.ConditionTrue; s.Ready {
			s.Reason = ""
		} else if !fresh {
			s.Reason = "no heartbeat yet since mote started"
		}
	}
	return s
}

func pressure(c corev1.NodeCondition) string {
	text := fmt.Sprintf("%s: %s", c.Type, c.Message)
	if c.Type == corev1.NodeDiskPressure {
		text += `; "mote check" compares what is free with the limits`
	}
	return text
}

// roleLabel marks the node as a control plane, for kubectl and for pods that must run beside the
// apiserver. The kubelet may not give itself a role (NodeRestriction).
const roleLabel = "node-role.kubernetes.io/control-plane"

// nodeReady is the last component of a start. It gives the node its role, and is ready when the
// node is Ready.
type nodeReady struct {
	*nodeWatch
	// registeredSuffices makes a registered node count as ready, for a pod network that the user
	// has yet to install.
	registeredSuffices bool

	done chan struct{}             // closed when ready
	last atomic.Pointer[NodeState] // the state that was not ready yet
}

func newNodeReady(watch *nodeWatch, registeredSuffices bool) *nodeReady {
	n := &nodeReady{nodeWatch: watch, registeredSuffices: registeredSuffices, done: make(chan struct{})}
	n.last.Store(&NodeState{Name: n.name, Reason: "not registered yet"})
	return n
}

// Name implements component.Component.
func (*nodeReady) Name() string { return "node" }

// Run implements component.Component. It watches the node until it is ready, and then only waits
// for ctx to end.
func (n *nodeReady) Run(ctx context.Context) error {
	for {
		err := n.follow(ctx)
		if n.last.Load().Ready {
			close(n.done)
			<-ctx.Done()
			return nil
		}
		if err != nil && ctx.Err() == nil {
			n.last.Store(&NodeState{Name: n.name, Reason: err.Error()})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchRetry):
		}
	}
}

// Ready implements component.Component.
func (n *nodeReady) Ready(ctx context.Context) error {
	select {
	case <-n.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("node %s is not Ready: %s", n.name, n.last.Load().Reason)
	}
}

// watchRetry is the pause after the apiserver has refused or ended a watch, to spare it.
const watchRetry = 200 * time.Millisecond

// follow watches the node until it is ready or the watch ends, as watches do now and then.
func (n *nodeReady) follow(ctx context.Context) error {
	events, err := n.nodes.Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, n.name).String(),
	})
	if err != nil {
		return fmt.Errorf("watch node %s: %w", n.name, err)
	}
	defer events.Stop()
	for event := range events.ResultChan() {
		node, ok := event.Object.(*corev1.Node)
		if !ok {
			return fmt.Errorf("watch node %s: %w", n.name, apierrors.FromObject(event.Object))
		}
		if err := n.giveRole(ctx, node); err != nil {
			return err
		}
		state := n.judge(node)
		state.Ready = state.Ready || n.registeredSuffices
		n.last.Store(&state)
		if state.Ready {
			return nil
		}
	}
	return nil
}

func (n *nodeReady) giveRole(ctx context.Context, node *corev1.Node) error {
	if _, ok := node.Labels[roleLabel]; ok {
		return nil
	}
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:""}}}`, roleLabel)
	if _, err := n.nodes.Patch(ctx, n.name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("label node %s: %w", n.name, err)
	}
	return nil
}
