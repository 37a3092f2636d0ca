// Package e2e drives the real mote file on private hosts and through real kubectl commands, as a
// user would: a server with nothing but loopback, bad input and bad luck, throwaway clusters.
package e2e

import (
	_ "embed"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/images"
)

const (
	// podTimeout is for a pod whose image is on the node: half a second on an idle machine.
	podTimeout = time.Minute
	nodeIP     = "10.42.0.1"
)

//go:embed testdata/web.yaml
var webManifest string

//go:embed testdata/csi.yaml
var csiManifest string

func TestMain(m *testing.M) { cluster.Main(m, "e2e") }

func busybox(t *testing.T) images.Image {
	t.Helper()
	im, err := images.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func program(t *testing.T, name, pkg string) images.Image {
	t.Helper()
	im, err := images.Program(name, cluster.Root(), pkg)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// startWeb runs the pods of web.yaml and waits until they serve.
func startWeb(t *testing.T, h *cluster.Host) {
	t.Helper()
	h.Apply(t, webManifest)
	h.Kubectl(t, "rollout", "status", "deployment/web", "--timeout="+podTimeout.String())
	h.Kubectl(t, "wait", "--for=condition=Ready", "pod/box", "--timeout="+podTimeout.String())
}

func webPod(t *testing.T, h *cluster.Host) string {
	t.Helper()
	return h.Kubectl(t, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}")
}

// waitTrouble waits until `mote status` reports a problem, or does not report it any more.
func waitTrouble(t *testing.T, h *cluster.Host, part string, told bool) {
	t.Helper()
	cluster.Wait(t, troubleTimeout, "the status to tell of "+part, func() error {
		r := h.Try(t, nil, "mote", "status") // it fails while a component is not ready
		if r.Code != 0 || strings.Contains(r.Stdout, part) != told {
			return fmt.Errorf("it says %s%s", r.Stdout, r.Stderr)
		}
		return nil
	})
}

// allowedErrors is the number of lines of ERROR that the log of a healthy run may have on a busy
// machine. The errors of upstream's components depend on how far apart they start.
// internal/logging/expected.go has a row for each known line, and a new one should get a row. On a
// quiet machine there is none; without the rows there are 20.
const allowedErrors = 8

// wantNoErrors checks that the log of a server has almost no errors, and few warnings, when its run
// so far was healthy.
func wantNoErrors(t *testing.T, s *cluster.Server, life string) {
	t.Helper()
	log, err := os.ReadFile(s.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	bad, warnings := 0, 0
	for line := range strings.Lines(string(log)) {
		switch {
		case !strings.HasPrefix(line, "time="):
			t.Logf("a line of another form: %s", line)
			bad++
		case strings.Contains(line, " level=ERROR "):
			t.Logf("error: %s", line)
			bad++
		case strings.Contains(line, " level=WARN "):
			t.Logf("warning: %s", line)
			warnings++
		}
	}
	if bad > allowedErrors || warnings > allowedErrors {
		t.Errorf("the log of %s has %d errors and %d warnings", life, bad, warnings)
	}
}

// troubleTimeout is the time in which mote must detect a problem, or the end of a problem.
const troubleTimeout = time.Minute

func wantContains(t *testing.T, what, got string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(got, part) {
			t.Errorf("%s lacks %q:\n%s", what, part, got)
		}
	}
}
