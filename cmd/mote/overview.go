package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/mote-k8s/mote/machine"
)

// shownPods is the number of pods that do not run in the list for people; -o json lists all.
const shownPods = 10

func printOverview(w io.Writer, r machine.Report, now time.Time) error {
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

func podCounts(p *machine.PodSummary) string {
	if p == nil {
		return "unknown: the API does not answer"
	}
	text := fmt.Sprintf("%d running, %d completed, %d not running", p.Running, p.Completed, len(p.Troubled))
	if p.More {
		text += fmt.Sprintf("; only the first %d were looked at", machine.MaxPods)
	}
	return text
}

// printPods lists pods that do not run, each with the reason in one line.
func printPods(w io.Writer, p *machine.PodSummary) {
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
