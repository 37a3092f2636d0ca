package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

func testPortForward(t *testing.T, h *cluster.Host) {
	features.Row(t, "D9", "port-forward to a Service")
	forward := exec.Command("mote", "kubectl", "port-forward", "service/web", "18080:80")
	forward.Env = h.Environ()
	out, err := forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(forward); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = forward.Process.Kill()
		_ = forward.Wait()
	}()
	giveUp := time.AfterFunc(podTimeout, func() { _ = forward.Process.Kill() })
	defer giveUp.Stop()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "Forwarding from") {
		t.Fatalf("port-forward says %q: %v", line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: h.Dial}}
	resp, err := client.Get("http://127.0.0.1:18080/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if want := webPod(t, h) + "\n"; err != nil || string(body) != want {
		t.Errorf("the forwarded port answers %q, want %q: %v", body, want, err)
	}
}

// testPorts compares the listening ports with the table in docs/architecture.md.
func testPorts(t *testing.T, h *cluster.Host) {
	features.Row(t, "A25", "what is listened on is the documented table")
	want, random := documentedPorts(t)
	var undocumented []string
	for line := range strings.Lines(h.Run(t, "ss", "-ltnH")) {
		address := strings.Fields(line)[3]
		if address == proxyAddress {
			continue // the test's own
		}
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatalf("ss: %q: %v", line, err)
		}
		if host == "*" || host == "0.0.0.0" || host == "::" {
			host = "any"
		}
		if i := slices.Index(want, host+":"+port); i >= 0 {
			want = slices.Delete(want, i, i+1)
		} else {
			undocumented = append(undocumented, host+":"+port)
		}
	}
	if len(want) > 0 {
		t.Errorf("documented, but nobody listens on %v", want)
	}
	for _, address := range undocumented {
		if random--; random < 0 || !strings.HasPrefix(address, "127.0.0.1:") {
			t.Errorf("listened on, but not documented: %v", undocumented)
			break
		}
	}
	for line := range strings.Lines(h.Run(t, "ss", "-lunH")) {
		if strings.Fields(line)[3] != nodeIP+":10053" {
			t.Errorf("open UDP port, not DNS: %s", line)
		}
	}
}

// documentedPorts reads the port table. It returns "address:port" of each row with a number, and
// the number of random ports on 127.0.0.1.
func documentedPorts(t *testing.T) (fixed []string, random int) {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join(cluster.Root(), "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^\| (\d+|random) \| (.*?) \|`)
	for _, m := range row.FindAllStringSubmatch(string(doc), -1) {
		address := regexp.MustCompile(`\d+\.\d+\.\d+\.\d+`).FindString(m[2])
		switch {
		case m[1] == "random":
			random++
		case m[2] == "node address", m[2] == "addons' address":
			fixed = append(fixed, nodeIP+":"+m[1])
		case address == "0.0.0.0":
			fixed = append(fixed, "any:"+m[1])
		default:
			fixed = append(fixed, fmt.Sprintf("%s:%s", address, m[1]))
		}
	}
	if len(fixed) == 0 {
		t.Fatal("docs/architecture.md has no port table")
	}
	return fixed, random
}
