package sandbox

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// These are the bounds of a report, which is read on a terminal and in the log of a CI job.
const (
	reportPods   = 30
	reportEvents = 20
	reportLogs   = 5
	// reportLines is the number of lines of each container's log in the report.
	reportLines = 15
)

// pod holds the fields of a Pod that a report reads.
type pod struct {
	Metadata struct{ Namespace, Name string }
	Status   struct {
		Phase, Reason, Message string
		Conditions             []struct{ Type, Status, Reason, Message string }
		InitContainerStatuses  []containerStatus
		ContainerStatuses      []containerStatus
	}
}

type containerStatus struct {
	Name         string
	Ready        bool
	RestartCount int
	State        containerState
	LastState    containerState
}

type containerState struct {
	Running    *struct{}
	Waiting    *struct{ Reason, Message string }
	Terminated *struct {
		Reason, Message string
		ExitCode        int
	}
}

// trouble returns the reason why the pod is not Ready, or "" if it is Ready or has finished its
// work.
func (p pod) trouble() string {
	if p.Status.Phase == "Succeeded" {
		return ""
	}
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" && c.Status == "True" {
			return ""
		}
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if why := c.trouble(); why != "" {
			return "container " + c.Name + ": " + why
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status == "False" && c.Message != "" {
			return c.Reason + ": " + c.Message
		}
	}
	return strings.TrimSuffix(cmp.Or(p.Status.Reason, p.Status.Phase)+": "+p.Status.Message, ": ")
}

func (c containerStatus) trouble() string {
	switch {
	case c.State.Waiting != nil && c.State.Waiting.Reason != "PodInitializing" && c.State.Waiting.Reason != "ContainerCreating":
		return strings.TrimSuffix(c.State.Waiting.Reason+": "+c.State.Waiting.Message, ": ")
	case c.State.Terminated != nil && c.State.Terminated.ExitCode != 0:
		return fmt.Sprintf("%s, exit code %d", c.State.Terminated.Reason, c.State.Terminated.ExitCode)
	case c.State.Running != nil && !c.Ready:
		return "runs, but is not ready"
	}
	return ""
}

// failed reports whether the container has ended with an error, and whether that was its previous
// run.
func (c containerStatus) failed() (failed, previous bool) {
	if t := c.State.Terminated; t != nil {
		return t.ExitCode != 0, false
	}
	t := c.LastState.Terminated
	return t != nil && t.ExitCode != 0, true
}

// event holds the fields of an Event that a report reads.
type event struct {
	Type, Reason, Message string
	Count                 int
	LastTimestamp         time.Time
	EventTime             time.Time
	InvolvedObject        struct{ Kind, Namespace, Name string }
}

func (e event) time() time.Time {
	if e.LastTimestamp.IsZero() {
		return e.EventTime
	}
	return e.LastTimestamp
}

// WriteReport writes what a person checks first when a command has failed: the pods that are not
// Ready, with reasons, the newest Warning events, and the last lines of failed containers. If there
// is none of these, it writes nothing.
func (s *Sandbox) WriteReport(ctx context.Context, w io.Writer) error {
	var pods struct{ Items []pod }
	if err := s.api.list(ctx, "/api/v1/pods", &pods); err != nil {
		return err
	}
	var events struct{ Items []event }
	if err := s.api.list(ctx, "/api/v1/events?fieldSelector=type%3DWarning", &events); err != nil {
		return err
	}
	bad := slices.DeleteFunc(pods.Items, func(p pod) bool { return p.trouble() == "" })
	if err := writePods(w, bad); err != nil {
		return err
	}
	if err := writeEvents(w, events.Items); err != nil {
		return err
	}
	return s.writeLogs(ctx, w, bad)
}

func writePods(w io.Writer, pods []pod) error {
	if len(pods) == 0 {
		return nil
	}
	fmt.Fprintf(w, "Pods that are not Ready (%d):\n", len(pods))
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "  NAMESPACE\tNAME\tPHASE\tWHY")
	for _, p := range pods[:min(len(pods), reportPods)] {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", p.Metadata.Namespace, p.Metadata.Name, p.Status.Phase, oneLine(p.trouble()))
	}
	return t.Flush()
}

func writeEvents(w io.Writer, events []event) error {
	if len(events) == 0 {
		return nil
	}
	slices.SortStableFunc(events, func(a, b event) int { return a.time().Compare(b.time()) })
	fmt.Fprintf(w, "Warning events, the newest last (%d):\n", len(events))
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "  TIME\tOBJECT\tREASON\tMESSAGE")
	for _, e := range events[max(0, len(events)-reportEvents):] {
		about := e.InvolvedObject.Kind + " " + strings.TrimPrefix(e.InvolvedObject.Namespace+"/"+e.InvolvedObject.Name, "/")
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", e.time().Local().Format(time.TimeOnly), about, e.Reason, oneLine(e.Message))
	}
	return t.Flush()
}

func (s *Sandbox) writeLogs(ctx context.Context, w io.Writer, pods []pod) error {
	left := reportLogs
	for _, p := range pods {
		for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			failed, previous := c.failed()
			if !failed || left == 0 {
				continue
			}
			left--
			log, err := s.api.podLog(ctx, p.Metadata.Namespace, p.Metadata.Name, c.Name, previous, reportLines)
			if err != nil {
				log = []byte(err.Error())
			}
			text := strings.ReplaceAll(strings.TrimRight(string(log), "\n"), "\n", "\n  ")
			if _, err := fmt.Fprintf(w, "The end of the log of %s/%s, container %s:\n  %s\n", p.Metadata.Namespace, p.Metadata.Name, c.Name, text); err != nil {
				return err
			}
		}
	}
	return nil
}

// oneLine returns text as one line of limited length, for a cell of a table.
func oneLine(text string) string {
	const size = 200
	text = strings.Join(strings.Fields(text), " ")
	if r := []rune(text); len(r) > size {
		return string(r[:size]) + " ..."
	}
	return text
}

// list sends a GET of path and decodes the answer into v.
func (a *kubeAPI) list(ctx context.Context, path string, v any) error {
	body, err := a.open(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(v); err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return nil
}

// open sends a GET of path and returns the body of the API's answer.
func (a *kubeAPI) open(ctx context.Context, path string) (io.ReadCloser, error) {
	client, server := a.connection()
	if client == nil {
		return nil, errNoAPI
	}
	return get(ctx, client, server+path)
}

func (a *kubeAPI) connection() (*http.Client, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.client, a.server
}

// podLog returns the last lines of a container's log. With previous they come from the container's
// previous run.
func (a *kubeAPI) podLog(ctx context.Context, namespace, name, container string, previous bool, lines int) ([]byte, error) {
	query := url.Values{"container": {container}, "tailLines": {fmt.Sprint(lines)}, "limitBytes": {fmt.Sprint(artifactSize)}}
	if previous {
		query.Set("previous", "true")
	}
	body, err := a.open(ctx, "/api/v1/namespaces/"+namespace+"/pods/"+name+"/log?"+query.Encode())
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, artifactSize))
}
