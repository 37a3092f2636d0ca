package conformance

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/conformance/report"
	"github.com/mote-k8s/mote/test/features"
)

var (
	name     = flag.String("name", "default", "name of the result")
	focus    = flag.String("focus", "", "run only the specs whose name this regular expression matches")
	serial   = flag.Bool("serial", true, "run the serial specs")
	parallel = flag.Bool("parallel", true, "run the specs that may run side by side")
	procs    = flag.Int("procs", 6, "how many specs run side by side; most of them wait most of the time")
	proxy    = flag.String("proxy", "auto", "mote's setting of that name")
	onDisk   = flag.Bool("disk", false, "put the data directory on the disk of the directory for temporary files, and not in memory")
	commit   = flag.String("commit", "unknown", "the commit that the binary is built from")
	argument = flag.String("command", "", "the command that the page names")
	quick    = flag.Bool("quick", false, "run only the specs of testdata/quick.txt, and compare no usage")
)

// registryAddress is on the host's loopback: containerd asks such a registry without TLS.
const registryAddress = "127.0.0.1:5000"

func TestMain(m *testing.M) { cluster.Main(m, "conformance") }

// TestConformance runs upstream's specs and leaves a report.Run. It fails for each spec that fails, except for those of
// which report.NeedsMore says why one node cannot pass them.
func TestConformance(t *testing.T) {
	switch {
	case *quick:
		features.Row(t, "H10", "a choice of upstream's conformance specs from each area, on a mote without a network")
	case *focus == "" && *parallel && *serial:
		features.Row(t, "H10", "all of upstream's conformance specs, on a mote without a network")
	}
	programs := filepath.Join(cluster.Root(), "bin", "conformance")
	if err := os.MkdirAll(filepath.Join(programs, "results"), 0o755); err != nil {
		t.Fatal(err)
	}
	h := cluster.NewHost(t, cluster.HostConfig{Name: "conformance"})
	serveImages(t, h, programs)
	if *onDisk {
		disk := filepath.Join(h.Dir, "disk")
		h.Run(t, "sh", "-c", `mkdir -m 0700 "$1" && mount --bind "$1" /var/lib/mote`, "sh", disk)
	}
	h.Run(t, "ln", "-s", "mote", "/usr/local/bin/kubectl")
	s := h.StartServer(t, "--proxy="+*proxy)
	s.WaitReady(t)

	result := report.Run{
		Name: *name, Date: time.Now().UTC().Format(time.DateOnly), Commit: *commit, Command: *argument,
		Settings: settings(t, h), Procs: *procs, Images: StandIns(),
	}
	if !*quick {
		result.Before = idleUsage(t, s, filepath.Join(programs, "results", *name+"-before-"))
	}
	start := time.Now()
	if *parallel {
		result.Specs = append(result.Specs, runSpecs(t, h, programs, "parallel", *procs)...)
	}
	if *serial && !*quick {
		result.Specs = append(result.Specs, runSpecs(t, h, programs, "serial", 1)...)
	}
	result.Took = time.Since(start).Round(time.Second)
	if !*quick {
		result.After = idleUsage(t, s, filepath.Join(programs, "results", *name+"-after-"))
	}
	result.Log = countLog(t, s.LogPath)
	if err := save(result, filepath.Join(programs, "results", *name+".json")); err != nil {
		t.Fatal(err)
	}
	if len(result.Specs) == 0 {
		t.Fatal("no spec ran; does --focus match any?")
	}
	if *quick && len(result.Specs) != len(quickSpecs(t)) {
		t.Errorf("%d specs ran, want one for each of the %d lines of testdata/quick.txt", len(result.Specs), len(quickSpecs(t)))
	}
	for _, spec := range result.Specs {
		if spec.State != report.Passed && report.NeedsMore(spec.Name) == "" {
			t.Errorf("%s: %s: %s", spec.State, spec.Name, spec.Reason)
		}
	}
	t.Log(result.Summary())
}

// serveImages starts a registry on the host and makes it the mirror of upstream's.
func serveImages(t *testing.T, h *cluster.Host, programs string) {
	t.Helper()
	list, err := exec.Command(filepath.Join(programs, "e2e.test"), "--list-images").Output()
	if err != nil {
		t.Fatalf("list the images of upstream's specs: %v", err)
	}
	served, err := MakeImages(programs, strings.Fields(string(list)))
	if err != nil {
		t.Fatal(err)
	}
	handler, err := newRegistry(served)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := h.Listen("tcp", registryAddress)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // until Close
	t.Cleanup(func() { _ = server.Close() })
	mirror := h.Path("/etc/mote/certs.d/" + Mirrored)
	if err := os.MkdirAll(mirror, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("server = %q\n", "http://"+registryAddress)
	if err := os.WriteFile(filepath.Join(mirror, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
}

// runSpecs runs the specs of one kind with ginkgo's own program, which starts procs processes of e2e.test.
func runSpecs(t *testing.T, h *cluster.Host, programs, kind string, procs int) []report.Spec {
	t.Helper()
	label := "Conformance && !Serial"
	if kind == "serial" {
		label = "Conformance && Serial"
	}
	output := filepath.Join(h.Dir, kind+".json")
	args := []string{
		"run", "--no-color", "--succinct", "--silence-skips", "--timeout=12h", fmt.Sprintf("--procs=%d", procs),
		"--label-filter=" + label, "--output-dir=" + h.Dir, "--json-report=" + filepath.Base(output),
	}
	if re := focused(t); re != "" {
		args = append(args, "--focus="+re)
	}
	args = append(args, filepath.Join(programs, "e2e.test"), "--",
		"--kubeconfig="+cluster.Kubeconfig, "--provider=skeleton", "--dump-logs-on-failure=true", "--disable-log-dump=true")
	log, err := os.Create(filepath.Join(programs, "results", *name+"-"+kind+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(programs, "ginkgo"), args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = h.Environ(), log, log, h.Dir
	if err := h.Start(cmd); err != nil {
		t.Fatalf("start ginkgo: %v", err)
	}
	ended := cmd.Wait() // its report says which specs failed
	data, err := os.ReadFile(output)
	if err != nil {
		t.Fatalf("ginkgo ended (%v) without a report: %v; its output is %s", ended, err, log.Name())
	}
	specs, err := report.Specs(data)
	if err != nil {
		t.Fatal(err)
	}
	for i := range specs {
		specs[i].Serial = kind == "serial"
	}
	return specs
}

// quickSpecs are the lines of testdata/quick.txt.
func quickSpecs(t *testing.T) (names []string) {
	t.Helper()
	list, err := os.ReadFile("testdata/quick.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			names = append(names, line)
		}
	}
	return names
}

// focused is the regular expression of the specs to run, "" for all.
func focused(t *testing.T) string {
	t.Helper()
	if !*quick {
		return *focus
	}
	var names []string
	for _, name := range quickSpecs(t) {
		names = append(names, regexp.QuoteMeta(name))
	}
	return strings.Join(names, "|")
}

// save writes the result as JSON.
func save(r report.Run, path string) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}
