package machine

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/reference"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
)

// maxEvent is the longest message that an event may have, in bytes: the apiserver refuses longer
// ones.
const maxEvent = 1024

// tellRepairs reports the repairs of the datastore as events of the node and then removes them from
// the list of unreported repairs. That includes repairs by a verb while mote was stopped.
func (m *Machine) tellRepairs(ctx context.Context, store *datastore.Datastore) {
	repairs := store.Repairs()
	if len(repairs) == 0 {
		return
	}
	for _, r := range repairs {
		slog.Warn("datastore was repaired", "component", "mote", "at", r.Time, "what", RepairText(r))
	}
	err := m.sendRepairs(ctx, repairs)
	if err == nil {
		err = store.RepairsReported()
	}
	if err != nil && ctx.Err() == nil {
		slog.Warn("repairs of the datastore could not be made events; the next start tries again", "component", "mote", "error", err)
	}
}

func (m *Machine) sendRepairs(ctx context.Context, repairs []rescue.Repair) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", m.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("make client for %s: %w", m.Kubeconfig(), err)
	}
	node, err := client.CoreV1().Nodes().Get(ctx, m.NodeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get node %s: %w", m.NodeName, err)
	}
	ref, err := reference.GetReference(scheme.Scheme, node)
	if err != nil {
		return fmt.Errorf("refer to node %s: %w", m.NodeName, err)
	}
	for _, r := range repairs {
		text := RepairText(r)
		// No event recorder: it would not report whether the event was stored.
		_, err := client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{GenerateName: node.Name + ".", Namespace: metav1.NamespaceDefault},
			InvolvedObject: *ref, Type: corev1.EventTypeWarning, Reason: "DatastoreRepaired",
			Message:        strings.ToValidUTF8(text[:min(len(text), maxEvent)], ""),
			Source:         corev1.EventSource{Component: "mote-datastore", Host: node.Name},
			FirstTimestamp: metav1.NewTime(r.Time), LastTimestamp: metav1.Now(), Count: 1,
		}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("make an event of node %s: %w", m.NodeName, err)
		}
	}
	return nil
}

// RepairText describes a repair for people.
func RepairText(r rescue.Repair) string {
	text := r.What
	if r.Lost != "" {
		text += "; lost: " + r.Lost
	}
	if len(r.Aside) > 0 {
		text += "; the damaged files are kept: " + strings.Join(r.Aside, ", ")
	}
	return text
}
