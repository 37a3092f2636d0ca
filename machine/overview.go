package machine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/internal/disk"
)

// SnapshotInfo describes a snapshot in JSON output.
type SnapshotInfo struct {
	Name       string    `json:"name"`
	Path       string    `json:"path"`
	Size       int64     `json:"size"`
	Revision   int64     `json:"revision"`
	Time       time.Time `json:"time"`
	Node       string    `json:"node"`
	Cluster    string    `json:"cluster"`
	Mote       string    `json:"mote"`
	Kubernetes string    `json:"kubernetes"`
	Encrypted  bool      `json:"encrypted"`
	Error      string    `json:"error,omitempty"`
}

func InfoOf(s snapshot.Snapshot) SnapshotInfo {
	info := SnapshotInfo{s.Name, s.Path, s.Size, s.Revision, s.Time, s.Node, s.Cluster, s.Mote, s.Kubernetes, s.Encryption != nil, ""}
	if s.Err != nil {
		info.Error = s.Err.Error()
	}
	return info
}

// Overview is the part of "mote status" above the components: the location of the cluster and the
// state of its workloads, disk and keys. Only the pods need the API.
type Overview struct {
	API        string `json:"api"`
	Kubeconfig string `json:"kubeconfig"`
	Context    string `json:"context"`
	NodeIP     string `json:"nodeIP"`
	// Pods is nil while the API does not answer.
	Pods *PodSummary `json:"pods,omitempty"`
	Disk *DiskState  `json:"disk,omitempty"`
	// Snapshot is the newest valid snapshot, nil before the first.
	Snapshot *SnapshotInfo `json:"snapshot,omitempty"`
	// Certificate is the certificate that expires first. mote renews it long before.
	Certificate *CertificateEnd `json:"certificate,omitempty"`
}

// DiskState is the state of the data directory's disk, in bytes.
type DiskState struct {
	Free uint64 `json:"free"`
	Size uint64 `json:"size"`
}

// CertificateEnd is the expiry of a certificate.
type CertificateEnd struct {
	Name    string    `json:"name"`
	Expires time.Time `json:"expires"`
}

// PodSummary counts the node's pods.
type PodSummary struct {
	Running   int `json:"running"`
	Completed int `json:"completed"`
	// Troubled lists the pods that have neither all containers running nor completed.
	Troubled []PodTrouble `json:"troubled"`
	// More is set when the cluster has more pods than were read.
	More bool `json:"more,omitempty"`
}

// PodTrouble is a pod that does not run, and why.
type PodTrouble struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Reason    string `json:"reason"`
	Message   string `json:"message,omitempty"`
}

// makeOverview collects everything that is known now. It leaves out values that it cannot get: the
// components' states report what is wrong.
func (m *Machine) makeOverview(ctx context.Context, w *nodeWatch) Overview {
	o := Overview{API: m.serverURL(), Kubeconfig: m.Kubeconfig(), Context: m.KubeconfigName(), NodeIP: m.nodeIP().String()}
	if on, err := disk.Of(m.DataDir); err == nil {
		o.Disk = &DiskState{Free: on.Free, Size: on.Size}
	}
	if list, err := snapshot.Folder(m.SnapshotDir).List(); err == nil {
		if i := slices.IndexFunc(list, func(s snapshot.Snapshot) bool { return s.Err == nil }); i >= 0 {
			newest := InfoOf(list[i])
			o.Snapshot = &newest
		}
	}
	if found, err := m.Certificates().Check(time.Now()); err == nil {
		for _, c := range found {
			if c.Expires != nil && (o.Certificate == nil || c.Expires.Before(o.Certificate.Expires)) {
				o.Certificate = &CertificateEnd{c.Name, *c.Expires}
			}
		}
	}
	o.Pods = w.summarise(ctx)
	return o
}

// MaxPods limits how many pods the status reads: several times the pods of one node.
const MaxPods = 1000

// summarise lists the pods once, from the apiserver's cache. It returns nil if the API does not
// answer.
func (w *nodeWatch) summarise(ctx context.Context) *PodSummary {
	list, err := w.pods.List(ctx, metav1.ListOptions{ResourceVersion: "0", Limit: MaxPods})
	if err != nil {
		return nil
	}
	sum := &PodSummary{Troubled: []PodTrouble{}, More: list.Continue != ""}
	for i := range list.Items {
		pod := &list.Items[i]
		reason, message := podReason(pod)
		switch {
		case reason != "":
			sum.Troubled = append(sum.Troubled, PodTrouble{pod.Namespace, pod.Name, reason, message})
		case pod.Status.Phase == corev1.PodSucceeded:
			sum.Completed++
		default:
			sum.Running++
		}
	}
	slices.SortFunc(sum.Troubled, func(a, b PodTrouble) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return sum
}

// podReason returns why a pod does not run with all its containers, in the words of the pod's
// status. It returns "" if the pod runs or has completed.
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
