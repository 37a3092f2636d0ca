package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt/rescue"
	"github.com/mote-k8s/mote/internal/component"
	"github.com/mote-k8s/mote/internal/version"
	"github.com/mote-k8s/mote/machine"
)

func exampleReport(now time.Time) machine.Report {
	return machine.Report{
		Version: version.Info{Mote: "v1.2.3"}, PID: 42, Started: now.Add(-time.Minute), DataDir: "/data",
		Overview: machine.Overview{
			API: "https://127.0.0.1:6443", Kubeconfig: "/data/kubeconfig", Context: "mote-n1", NodeIP: "10.42.0.1",
			Pods: &machine.PodSummary{Running: 3, Completed: 1, Troubled: []machine.PodTrouble{
				{Namespace: "default", Name: "shop", Reason: "ImagePullBackOff", Message: "Back-off pulling image\n\"shop:1\""},
				{Namespace: "kube-system", Name: "late", Reason: "Unschedulable"},
			}},
			Disk:        &machine.DiskState{Free: 12 << 30, Size: 40 << 30},
			Snapshot:    &machine.SnapshotInfo{Name: "daily", Time: now.Add(-time.Hour)},
			Certificate: &machine.CertificateEnd{Name: "apiserver", Expires: time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC)},
		},
		NameNote: "the host is called \"n2\" now",
		Node:     machine.NodeState{Name: "n1", Reason: "not registered yet", Trouble: []string{"DiskPressure: too little is free"}},
		Components: []component.Status{
			{Name: "datastore", State: component.Ready, Since: now.Add(-50 * time.Second), Trouble: []string{"a.yaml: no kind"}},
			{Name: "kube-apiserver", State: component.Starting, Since: now.Add(-3 * time.Second), Error: "/readyz says no"},
			{Name: "kubelet", State: component.Waiting, Since: now.Add(-time.Minute), WaitingFor: []string{"kube-apiserver", "images"}},
		},
		Repairs: []rescue.Repair{{Time: now.Add(-time.Minute), What: "rebuilt the index", Lost: "nothing that matters", Aside: []string{"/data/old"}}},
	}
}

func TestStatusSaysWhatIsMissing(t *testing.T) {
	now := time.Now()
	var out bytes.Buffer
	require.NoError(t, printStatus(&out, exampleReport(now), now))
	require.Equal(t, `mote v1.2.3, pid 42, up 1m0s, data in /data

API            https://127.0.0.1:6443, context mote-n1 in /data/kubeconfig
node           n1, 10.42.0.1, not ready
pods           3 running, 1 completed, 2 not running
disk           12.0 GiB of 40.0 GiB free
snapshot       daily, 1h0m0s ago
certificates   good until 2027-03-01 (apiserver)

PART             STATE       SINCE   MISSING
datastore        ready       50s     
kube-apiserver   starting    3s      /readyz says no
kubelet          waiting     1m0s    waits for kube-apiserver, images
node n1          not ready           not registered yet
datastore: a.yaml: no kind
node n1: DiskPressure: too little is free
node n1: the host is called "n2" now
pod default/shop: ImagePullBackOff: Back-off pulling image; "shop:1"
pod kube-system/late: Unschedulable
images that cannot be pulled: "mote image import FILE" loads an archive; --https-proxy names a proxy

datastore repaired 1m0s ago: rebuilt the index; lost: nothing that matters; the damaged files are kept: /data/old
`, out.String())
	require.EqualError(t, notReady(exampleReport(now), false), "not ready: kube-apiserver, kubelet, node n1")
}
