// Package e2e drives the real mote file on private hosts and through real kubectl verbs, as a
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
	// podTimeout is for a pod whose image is there: half a second on an idle machine.
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

// waitTrouble waits until `mote status` tells of something, or does not any more.
func waitTrouble(t *testing.T, h *cluster.Host, part string, told bool) {
	t.Helper()
	cluster.Wait(t, troubleTimeout, "the status to tell of "+part, func() error {
		r := h.Try(t, nil, "mote", "status") // which fails while a part is not ready
		if r.Code != 0 || strings.Contains(r.Stdout, part) != told {
			return fmt.Errorf("it says %s%s", r.Stdout, r.Stderr)
		}
		return nil
	})
}

// allowedErrors is how many lines of ERROR the log of a healthy life may have on a busy machine. What upstream finds
// missing when its parts start far apart depends on that: internal/logging/expected.go has a row for each line that
// is known, and one that is new should get one. On a quiet machine there is none; without the rows there are 20.
const allowedErrors = 8

// wantNoErrors wants next to no error in the log of a server whose life so far was healthy, and few warnings.
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

// troubleTimeout is for something wrong to be seen, or to be seen to be right again.
const troubleTimeout = time.Minute

func wantContains(t *testing.T, what, got string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(got, part) {
			t.Errorf("%s lacks %q:\n%s", what, part, got)
		}
	}
}
