package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-k8s/mote/cmd/mote/settings"
	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/internal/disk"
)

// overview is what "mote status" shows above the components: where the cluster is, and how its workloads, its disk and its
// keys are. All but the pods is known without the API.
type overview struct {
	API        string `json:"api"`
	Kubeconfig string `json:"kubeconfig"`
	Context    string `json:"context"`
	NodeIP     string `json:"nodeIP"`
	// Pods is nil while the API does not answer.
	Pods *podSummary `json:"pods,omitempty"`
	Disk *diskState  `json:"disk,omitempty"`
	// Snapshot is the newest good one, nil before the first.
	Snapshot *snapshotInfo `json:"snapshot,omitempty"`
	// Certificate is the one that ends first. mote renews it long before.
	Certificate *certificateEnd `json:"certificate,omitempty"`
}

// diskState is the disk of the data directory, in bytes.
type diskState struct {
	Free uint64 `json:"free"`
	Size uint64 `json:"size"`
}

// certificateEnd is when a certificate ends.
type certificateEnd struct {
	Name    string    `json:"name"`
	Expires time.Time `json:"expires"`
}

// podSummary counts the node's pods.
type podSummary struct {
	Running   int `json:"running"`
	Completed int `json:"completed"`
	// Troubled are those that neither run with all their containers nor have completed.
	Troubled []podTrouble `json:"troubled"`
	// More is set when the cluster has more pods than were looked at.
	More bool `json:"more,omitempty"`
}

// podTrouble is a pod that does not run, and why.
type podTrouble struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Reason    string `json:"reason"`
	Message   string `json:"message,omitempty"`
}

// makeOverview looks at all that is known now. What cannot be had is left out: the components' states say what is wrong.
func makeOverview(ctx context.Context, s *settings.Settings, w *nodeWatch) overview {
	o := overview{API: serverURL(s), Kubeconfig: s.Kubeconfig(), Context: clusterName(s), NodeIP: nodeIP(s).String()}
	if on, err := disk.Of(s.DataDir); err == nil {
		o.Disk = &diskState{Free: on.Free, Size: on.Size}
	}
	if list, err := snapshot.Folder(s.SnapshotDir).List(); err == nil {
		if i := slices.IndexFunc(list, func(s snapshot.Snapshot) bool { return s.Err == nil }); i >= 0 {
			newest := infoOf(list[i])
			o.Snapshot = &newest
		}
	}
	if found, err := certificates(s).Check(time.Now()); err == nil {
		for _, c := range found {
			if c.Expires != nil && (o.Certificate == nil || c.Expires.Before(o.Certificate.Expires)) {
				o.Certificate = &certificateEnd{c.Name, *c.Expires}
			}
		}
	}
	o.Pods = w.summarise(ctx)
	return o
}

// mostPods bounds how many pods the status looks at: several times what one node runs.
const mostPods = 1000

// summarise asks for the pods once, from the apiserver's cache. It returns nil if the API does not answer.
func (w *nodeWatch) summarise(ctx context.Context) *podSummary {
	list, err := w.pods.List(ctx, metav1.ListOptions{ResourceVersion: "0", Limit: mostPods})
	if err != nil {
		return nil
	}
	sum := &podSummary{Troubled: []podTrouble{}, More: list.Continue != ""}
	for i := range list.Items {
		pod := &list.Items[i]
		reason, message := podReason(pod)
		switch {
		case reason != "":
			sum.Troubled = append(sum.Troubled, podTrouble{pod.Namespace, pod.Name, reason, message})
		case pod.Status.Phase == corev1.PodSucceeded:
			sum.Completed++
		default:
			sum.Running++
		}
	}
	slices.SortFunc(sum.Troubled, func(a, b podTrouble) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return sum
}

// podReason returns why a pod does not run with all its containers, in the words of its status, or "" if it does or has completed.
func podReason(pod *corev1.Pod) (reason, message string) {
	if pod.Status.Phase == corev1.PodSucceeded {
		return "", ""
	}
	if pod.Status.Phase == corev1.PodFailed && pod.Status.Reason != "" {
		return pod.Status.Reason, pod.Status.Message
	}
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "" && c.State.Waiting.Reason != "PodInitializing":
			return c.State.Waiting.Reason, c.State.Waiting.Message
		case c.State.Terminated != nil && c.State.Terminated.ExitCode != 0:
			return c.State.Terminated.Reason, fmt.Sprintf("container %s ended with exit code %d", c.Name, c.State.Terminated.ExitCode)
		}
	}
	if pod.Status.Phase == corev1.PodFailed {
		return "Failed", pod.Status.Message
	}
	for _, c := range pod.Status.Conditions {
		unscheduled := c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse
		unready := c.Type == corev1.PodReady && c.Status == corev1.ConditionFalse
		if unscheduled || unready && pod.Status.Phase == corev1.PodRunning {
			return c.Reason, c.Message
		}
	}
	if pod.Status.Phase == corev1.PodPending {
		return "Pending", ""
	}
	return "", ""
}

// shownPods is how many pods that do not run are listed for people; -o json has all.
const shownPods = 10

func printOverview(w io.Writer, r report, now time.Time) error {
	o := r.Overview
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintf(t, "API\t%s, context %s in %s\n", o.API, o.Context, o.Kubeconfig)
	state := "ready"
	if !r.Node.Ready {
		state = "not ready"
	}
	fmt.Fprintf(t, "node\t%s, %s, %s\n", r.Node.Name, o.NodeIP, state)
	fmt.Fprintf(t, "pods\t%s\n", podCounts(o.Pods))
	if o.Disk != nil {
		fmt.Fprintf(t, "disk\t%s of %s free\n", fileSize(int64(o.Disk.Free)), fileSize(int64(o.Disk.Size)))
	}
	if o.Snapshot == nil {
		fmt.Fprintln(t, "snapshot\tnone yet")
	} else {
		fmt.Fprintf(t, "snapshot\t%s, %s ago\n", o.Snapshot.Name, age(now, o.Snapshot.Time))
	}
	if o.Certificate != nil {
		fmt.Fprintf(t, "certificates\tgood until %s (%s)\n", o.Certificate.Expires.Format(time.DateOnly), o.Certificate.Name)
	}
	fmt.Fprintln(t)
	return t.Flush()
}

func podCounts(p *podSummary) string {
	if p == nil {
		return "unknown: the API does not answer"
	}
	text := fmt.Sprintf("%d running, %d completed, %d not running", p.Running, p.Completed, len(p.Troubled))
	if p.More {
		text += fmt.Sprintf("; only the first %d were looked at", mostPods)
	}
	return text
}

// printPods lists pods that do not run, each with the reason in one line.
func printPods(w io.Writer, p *podSummary) {
	if p == nil {
		return
	}
	var pulls bool
	for i, pod := range p.Troubled {
		pulls = pulls || slices.Contains([]string{"ErrImagePull", "ImagePullBackOff"}, pod.Reason)
		if i < shownPods {
			text := pod.Reason
			if pod.Message != "" {
				text += ": " + oneLine(fmt.Errorf("%s", pod.Message))
			}
			fmt.Fprintf(w, "pod %s/%s: %s\n", pod.Namespace, pod.Name, text)
		}
	}
	if more := len(p.Troubled) - shownPods; more > 0 {
		fmt.Fprintf(w, "and %d more: mote kubectl get pods -A\n", more)
	}
	if pulls {
		fmt.Fprintln(w, `images that cannot be pulled: "mote image import FILE" loads an archive; --https-proxy names a proxy`)
	}
}
