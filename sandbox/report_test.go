package sandbox

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// fakeAPI returns a Sandbox whose API answers the requests of a report.
func fakeAPI(t *testing.T) *Sandbox {
	t.Helper()
	answers := map[string]string{
		"/apis":         `{"groups":[{"name":"apps","preferredVersion":{"groupVersion":"apps/v1"}}]}`,
		"/api/v1":       `{"resources":[{"name":"secrets","kind":"Secret","namespaced":true,"verbs":["get","list"]},{"name":"pods","kind":"Pod","verbs":["list"]},{"name":"pods/log","kind":"Pod","verbs":["get"]},{"name":"nodes","kind":"Node","verbs":["list"]}]}`,
		"/apis/apps/v1": `{"resources":[{"name":"deployments","kind":"Deployment","verbs":["list"]}]}`,
		"/api/v1/secrets": `{"items":[{"metadata":{"name":"s","namespace":"a","managedFields":[{}],"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"SWORDFISH"}},
			"data":{"password":"SWORDFISH"},"stringData":{"other":"SWORDFISH"}}]}`,
		"/api/v1/nodes":             `{"items":[{"metadata":{"name":"mote"}}]}`,
		"/apis/apps/v1/deployments": `{"items":[{"metadata":{"name":"web","namespace":"a"}}]}`,
		"/api/v1/events": `{"items":[
			{"type":"Warning","reason":"Newer","message":"two\nlines","lastTimestamp":"2026-01-02T03:04:06Z","involvedObject":{"kind":"Pod","namespace":"a","name":"crash"}},
			{"type":"Warning","reason":"Older","message":"m","eventTime":"2026-01-02T03:04:05.123456Z","involvedObject":{"kind":"Node","name":"mote"}}]}`,
		"/api/v1/pods": `{"items":[
			{"metadata":{"namespace":"a","name":"good"},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}},
			{"metadata":{"namespace":"a","name":"done"},"status":{"phase":"Succeeded"}},
			{"metadata":{"namespace":"a","name":"crash"},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"False"}],"containerStatuses":[
				{"name":"c","restartCount":3,"state":{"waiting":{"reason":"CrashLoopBackOff","message":"back-off"}},"lastState":{"terminated":{"reason":"Error","exitCode":7}}}]}},
			{"metadata":{"namespace":"b","name":"wide"},"status":{"phase":"Pending","conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":"0/1 nodes"}]}}]}`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/log") {
			_, _ = io.WriteString(w, "log of "+r.URL.Path+" previous="+r.FormValue("previous")+"\nlast line\n")
			return
		}
		answer, ok := answers[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(server.Close)
	return &Sandbox{
		api:  &kubeAPI{client: server.Client(), server: server.URL},
		init: &initProcess{cmd: &exec.Cmd{Process: &os.Process{Pid: 1 << 30}}}, // no process has this ID
		log:  newTail(nil),
	}
}

func TestReport(t *testing.T) {
	var out strings.Builder
	require.NoError(t, fakeAPI(t).WriteReport(t.Context(), &out))
	got := strings.Split(strings.TrimRight(out.String(), "\n"), "\n")
	require.Len(t, got, 11)
	require.Equal(t, "Pods that are not Ready (2):", got[0])
	require.Equal(t, "  a           crash   Running   container c: CrashLoopBackOff: back-off", got[2])
	require.Equal(t, "  b           wide    Pending   Unschedulable: 0/1 nodes", got[3])
	require.Regexp(t, `Node mote +Older +m$`, got[6])
	require.Regexp(t, `Pod a/crash +Newer +two lines$`, got[7])
	require.Equal(t, []string{
		"The end of the log of a/crash, container c:",
		"  log of /api/v1/namespaces/a/pods/crash/log previous=true", "  last line",
	}, got[8:])
}

func TestArtifacts(t *testing.T) {
	s, dir := fakeAPI(t), filepath.Join(t.TempDir(), "out")
	_, err := io.WriteString(s.log, "the server's last words\n")
	require.NoError(t, err)
	require.NoError(t, s.WriteArtifacts(t.Context(), dir))
	read := func(path string) string {
		data, err := os.ReadFile(filepath.Join(dir, path))
		require.NoError(t, err)
		return string(data)
	}
	require.Contains(t, read("objects/a/deployments.apps.yaml"), "apiVersion: apps/v1\n  kind: Deployment\n")
	require.Contains(t, read("objects/_cluster/nodes.yaml"), "kind: Node")
	require.Contains(t, read("objects/a/secrets.yaml"), "password: REDACTED")
	require.NotContains(t, read("objects/a/secrets.yaml"), "managedFields")
	require.Contains(t, read("logs/a/crash/c.previous.log"), "previous=true")
	require.Contains(t, read("logs/a/crash/c.log"), "previous=\n")
	require.Contains(t, read("events.txt"), "CrashLoopBackOff")
	require.Equal(t, "the server's last words\n", read("mote.log"))
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NotContains(t, string(data), "SWORDFISH", path)
		}
		return err
	}))
}

// TestArtifactsWithoutAPI checks that everything available is written, and that the error names the
// rest.
func TestArtifactsWithoutAPI(t *testing.T) {
	s, dir := fakeAPI(t), t.TempDir()
	s.api.client = nil
	require.ErrorIs(t, s.WriteArtifacts(t.Context(), dir), errNoAPI)
	require.FileExists(t, filepath.Join(dir, "mote.log"))
}
