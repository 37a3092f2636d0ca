package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-k8s/mote/addons/api"
	"github.com/mote-k8s/mote/cmd/mote/settings"
	"github.com/mote-k8s/mote/datastore/bolt"
)

// maxEvent is how long an event's message may be, in bytes: an event that is longer is refused.
const maxEvent = 1024

// tellRepairs makes events of the node of what the datastore's start repaired. It returns when ctx ends, because events are sent behind
// its back.
func tellRepairs(ctx context.Context, s *settings.Settings, repairs []bolt.Repair) {
	if len(repairs) == 0 {
		return
	}
	if err := sendRepairs(ctx, s, repairs); err != nil && ctx.Err() == nil {
		slog.Warn("repairs of the datastore could not be made events", "component", "mote", "error", err)
	}
}

func sendRepairs(ctx context.Context, s *settings.Settings, repairs []bolt.Repair) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("make client for %s: %w", s.Kubeconfig(), err)
	}
	node, err := client.CoreV1().Nodes().Get(ctx, s.NodeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get node %s: %w", s.NodeName, err)
	}
	events := api.NewEvents(client, "datastore")
	defer events.Close()
	for _, r := range repairs {
		text := repairText(r)
		events.Warn(node, "DatastoreRepaired", text[:min(len(text), maxEvent)])
	}
	<-ctx.Done()
	return nil
}

// repairText is a repair for people.
func repairText(r bolt.Repair) string {
	text := r.What
	if r.Lost != "" {
		text += "; lost: " + r.Lost
	}
	if len(r.Aside) > 0 {
		text += "; the damaged files are kept: " + strings.Join(r.Aside, ", ")
	}
	return text
}
