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
	compare  = flag.Bool("compare", true, "compare what the process uses before and after")
	again    = flag.Bool("again", false, "run only the specs that failed in the result of this name, compare nothing, and keep the rest of it")
	quick    = flag.Bool("quick", false, "run only the specs of testdata/quick.txt, and compare nothing")
)

// registryAddress is on the host's loopback: containerd uses such a registry without TLS.
const registryAddress = "127.0.0.1:5000"

func TestMain(m *testing.M) { cluster.Main(m, "conformance") }

// TestConformance runs upstream's specs and writes a report.Run. It fails for each spec that fails,
// except those for which report.NeedsMore gives a reason why one node cannot pass them.
func TestConformance(t *testing.T) {
	switch {
	case *quick:
		features.Row(t, "H10", "a choice of upstream's conformance specs from each area, on a mote without a network")
	case *focus == "" && *parallel && *serial && !*again:
		features.Row(t, "H10", "all of upstream's conformance specs, on a mote without a network")
	}
	programs := filepath.Join(cluster.Root(), "bin", "conformance")
	results := filepath.Join(programs, "results", *name)
	if err := os.MkdirAll(filepath.Dir(results), 0o755); err != nil {
		t.Fatal(err)
	}
	chosen := focused(t, results)
	h := cluster.NewHost(t, cluster.HostConfig{Name: "conformance"})
	serveImages(t, h, programs)
	if *onDisk {
		disk := filepath.Join(h.Dir, "disk")
		h.Run(t, "sh", "-c", `mkdir -m 0700 "$1" && mount --bind "$1" /var/lib/mote`, "sh", disk)
	}
	h.Run(t, "ln", "-s", "mote", "/usr/local/bin/kubectl")
	s := h.StartServer(t, "--proxy="+*proxy)
	s.WaitReady(t)

	run := runAll(t, s, chosen, results)
	if *again {
		run = merged(t, results, run)
	}
	if err := save(run, results); err != nil {
		t.Fatal(err)
	}
	if len(run.Specs) == 0 {
		t.Fatal("no spec ran; does --focus match any?")
	}
	if *quick && len(run.Specs) != len(quickSpecs(t)) {
		t.Errorf("%d specs ran, want one for each of the %d lines of testdata/quick.txt", len(run.Specs), len(quickSpecs(t)))
	}
	for _, spec := range run.Failures() {
		t.Errorf("%s: %s: %s", spec.State, spec.Name, spec.Reason)
	}
	t.Log(run.Summary())
}

// runAll runs the chosen specs and compares the process before and after.
func runAll(t *testing.T, s *cluster.Server, chosen, results string) report.Run {
	t.Helper()
	run := report.Run{
		Name: *name, Date: time.Now().UTC().Format(time.DateOnly), Commit: *commit, Command: *argument,
		Settings: settings(t, s.Host), Procs: *procs, Images: StandIns(),
		Partial: *quick || *focus != "",
	}
	whole := *compare && !*quick && !*again
	if whole {
		run.Before = idleUsage(t, s, results+"-before-")
	}
	start := time.Now()
	if *parallel {
		run.Specs = runSpecs(t, s.Host, "parallel", *procs, chosen, results)
	}
	if *serial && !*quick {
		run.Specs = append(run.Specs, runSpecs(t, s.Host, "serial", 1, chosen, results)...)
	}
	run.Took = time.Since(start).Round(time.Second)
	if whole {
		run.After = idleUsage(t, s, results+"-after-")
	}
	run.Log = countLog(t, s.LogPath)
	return run
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

// runSpecs runs the specs of one kind with ginkgo's own program, which starts procs processes of
// e2e.test.
func runSpecs(t *testing.T, h *cluster.Host, kind string, procs int, chosen, results string) []report.Spec {
	t.Helper()
	programs := filepath.Dir(filepath.Dir(results))
	label := "Conformance && !Serial"
	if kind == "serial" {
		label = "Conformance && Serial"
	}
	output := filepath.Join(h.Dir, kind+".json")
	args := []string{
		"run", "--no-color", "--succinct", "--silence-skips", "--timeout=12h", fmt.Sprintf("--procs=%d", procs),
		"--label-filter=" + label, "--output-dir=" + h.Dir, "--json-report=" + filepath.Base(output),
	}
	if chosen != "" {
		args = append(args, "--focus="+chosen)
	}
	args = append(args, filepath.Join(programs, "e2e.test"), "--",
		"--kubeconfig="+cluster.Kubeconfig, "--provider=skeleton", "--dump-logs-on-failure=true", "--disable-log-dump=true")
	log, err := os.Create(results + "-" + kind + ".log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(programs, "ginkgo"), args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = h.Environ(), log, log, h.Dir
	if err := h.Start(cmd); err != nil {
		t.Fatalf("start ginkgo: %v", err)
	}
	ended := cmd.Wait() // the report lists the failed specs
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

// quickSpecs returns the lines of testdata/quick.txt.
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

// focused returns the regular expression of the specs to run, "" for all.
func focused(t *testing.T, results string) string {
	t.Helper()
	var names []string
	switch {
	case *again:
		for _, spec := range load(t, results).Failures() {
			names = append(names, regexp.QuoteMeta(spec.Name))
		}
		if len(names) == 0 {
			t.Skip("no spec has failed")
		}
	case *quick:
		for _, name := range quickSpecs(t) {
			names = append(names, regexp.QuoteMeta(name))
		}
	default:
		return *focus
	}
	return strings.Join(names, "|")
}

// merged returns the earlier run with the results of the specs that ran again.
func merged(t *testing.T, results string, later report.Run) report.Run {
	t.Helper()
	run := load(t, results)
	run.Again(later.Specs)
	run.Images = later.Images
	return run
}

func load(t *testing.T, results string) (run report.Run) {
	t.Helper()
	data, err := os.ReadFile(results + ".json")
	if err == nil {
		err = json.Unmarshal(data, &run)
	}
	if err != nil {
		t.Fatalf("read the earlier result: %v", err)
	}
	return run
}

func save(run report.Run, results string) error {
	data, err := json.MarshalIndent(run, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(results+".json", data, 0o644)
}
