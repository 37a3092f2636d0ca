package machine

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/conformance"
	"github.com/mote-k8s/mote/test/conformance/report"
	"github.com/mote-k8s/mote/test/features"
)

var (
	programs = flag.String("conformance", "", "run upstream's conformance specs, with the programs of this directory")
	specs    = flag.String("focus", strings.Join(cgroupSpecs(), "|"), "run only the conformance specs whose name this regular expression matches")
	runName  = flag.String("name", "cgroup v2", "name of the conformance run")
	commit   = flag.String("commit", "unknown", "the commit that the binary is built from")
	argument = flag.String("command", "", "the command that the page of conformance names")
)

const (
	// specsTimeout is for all specs, one after another. Emulation is some ten times slower than the
	// processor.
	specsTimeout = 90 * time.Minute
	// specsMegabytes is the machine's memory: for the node, and for e2e.test, which takes 200 MB.
	specsMegabytes = 3072
	specsReport    = "/root/report.json"
)

// cgroupSpecs returns the specs that run by default: those that depend on cgroups most, and some
// others.
func cgroupSpecs() []string {
	return []string{
		`Pod InPlace Resize Container resize pod via the replace endpoint`,
		`Pods Set QOS Class should be set on Pods with matching resource requests and limits`,
		`Downward API should provide container's limits.cpu/memory and requests.cpu/memory as env vars`,
		`Downward API should provide default limits.cpu/memory from node allocatable`,
		`RuntimeClass should schedule a Pod requesting a RuntimeClass and initialize its Overhead`,
		`EmptyDir volumes should support .non-root,0644,tmpfs.`,
		`Security Context When creating a pod with privileged should run the container as unprivileged when false`,
		`Services should serve a basic endpoint from pods`,
		`Pods should be submitted and removed`,
	}
}

// TestConformance runs some of upstream's conformance specs on a machine with cgroup v2, and writes
// their results for test/conformance/page. scripts/conformance --machine starts it.
func TestConformance(t *testing.T) {
	if *programs == "" {
		t.Skip("run it with: sudo scripts/conformance --machine")
	}
	features.Row(t, "H10", "some of upstream's conformance specs, on a machine with cgroup v2 and a disk")
	k, err := findKernel(os.Getenv("MOTE_MACHINE_KERNEL"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disk, initrd := filepath.Join(dir, "disk.img"), filepath.Join(dir, "initrd")
	if err := makeDisk(disk, k, cluster.Binary(), "mote.rc", addSpecs); err != nil {
		t.Fatal(err)
	}
	if err := makeInitrd(initrd, k); err != nil {
		t.Fatal(err)
	}
	g := boot(t, k, initrd, disk, specsMegabytes)
	waitReady(t, g)
	waitImages(t, g)
	run := report.Run{
		Name: *runName, Date: time.Now().UTC().Format(time.DateOnly), Commit: *commit, Command: *argument,
		Settings: guestSettings(t, g), Procs: 1, Images: conformance.StandIns(),
		Partial: *specs != strings.Join(cgroupSpecs(), "|"),
	}
	start := time.Now()
	runSpecs(t, g)
	run.Took = time.Since(start).Round(time.Second)
	g.run(t, "sync")
	g.cutPower()
	if run.Specs, err = report.Specs(readDisk(t, disk, specsReport)); err != nil {
		t.Fatal(err)
	}
	if run.Log, err = report.ReadLog(strings.NewReader(string(readDisk(t, disk, "/var/log/mote.log")))); err != nil {
		t.Fatal(err)
	}
	saveRun(t, run)
}

// waitImages waits until each archive on the disk is imported. If that takes long the node starts
// pods before, and under emulation it takes minutes.
func waitImages(t *testing.T, g *guest) {
	t.Helper()
	for _, name := range guestImages() {
		g.waitFor(t, specsTimeout, "mote image list --quiet | grep -q "+name)
	}
}

// guestImages returns the upstream images that the default specs need, each as a part of its name.
func guestImages() []string { return []string{"/agnhost:2.6", "/busybox:1.37", "/pause:3"} }

// addSpecs puts e2e.test and the images that the specs name below the root of a disk.
func addSpecs(root string) error {
	if err := copyFile(filepath.Join(root, "usr/local/bin/e2e.test"), filepath.Join(*programs, "e2e.test")); err != nil {
		return err
	}
	list, err := exec.Command(filepath.Join(*programs, "e2e.test"), "--list-images").Output()
	if err != nil {
		return fmt.Errorf("list the images of upstream's specs: %w", err)
	}
	made, err := conformance.MakeImages(*programs, strings.Fields(string(list)))
	if err != nil {
		return err
	}
	for i, im := range made {
		if slices.ContainsFunc(guestImages(), func(part string) bool { return strings.Contains(im.Name, part) }) {
			err = errors.Join(err, im.Save(filepath.Join(root, "var/lib/mote/images", fmt.Sprintf("image-%d.tar", i))))
		}
	}
	return errors.Join(err, os.WriteFile(filepath.Join(root, "usr/local/bin/specs"), []byte(specsScript()), 0o755))
}

// specsScript returns a script that runs the specs once in a boot, and writes the exit code to
// /root/code when they have ended.
func specsScript() string {
	return fmt.Sprintf(`#!/bin/sh
mkdir /tmp/specs 2>/dev/null || exit 0 # in memory
rm -f /root/code
e2e.test --kubeconfig=%s --provider=skeleton --disable-log-dump=true --ginkgo.label-filter=Conformance \
	--ginkgo.focus='%s' --ginkgo.json-report=%s --ginkgo.no-color --ginkgo.timeout=12h >/root/specs.log 2>&1
echo $? >/root/code
`, cluster.Kubeconfig, strings.ReplaceAll(*specs, "'", "."), specsReport)
}

// runSpecs runs the specs in the background and waits until they have ended. It runs them again
// after a lockup of the emulator.
func runSpecs(t *testing.T, g *guest) {
	t.Helper()
	g.waitFor(t, specsTimeout, "test -f /root/code || { specs & false; }")
	t.Logf("end of the specs' output:\n%s", g.run(t, "tail -n 40 /root/specs.log"))
}

func guestSettings(t *testing.T, g *guest) report.Settings {
	t.Helper()
	line := func(command string) string { return strings.TrimSpace(g.run(t, command)) }
	return report.Settings{
		Kubernetes: line("kubectl get node machine -o jsonpath='{.status.nodeInfo.kubeletVersion}'"),
		Mote:       line("mote version | awk 'NR == 1 { print $2 }'"),
		Kernel:     line("uname -r"),
		Proxy:      line("if nft list table ip kube-proxy >/dev/null 2>&1; then echo nftables; else echo iptables; fi"),
		Cgroup:     line("if grep -q cgroup2 /proc/mounts; then echo v2; else echo v1; fi"),
		Data:       line("awk '$2 == \"/\" { print $3 }' /proc/mounts"),
	}
}

// readDisk reads a file of a disk that no machine uses.
func readDisk(t *testing.T, disk, path string) []byte {
	t.Helper()
	to := filepath.Join(t.TempDir(), "file")
	// The journal is replayed first: the power was cut.
	if out, err := exec.Command("e2fsck", "-p", disk).CombinedOutput(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() > 1 {
			t.Fatalf("check the disk: %v: %s", err, out)
		}
	}
	if out, err := exec.Command("debugfs", "-R", "dump "+path+" "+to, disk).CombinedOutput(); err != nil {
		t.Fatalf("read %s of the disk: %v: %s", path, err, out)
	}
	data, err := os.ReadFile(to)
	if err != nil {
		t.Fatalf("the disk has no %s: %v", path, err)
	}
	return data
}

func saveRun(t *testing.T, run report.Run) {
	t.Helper()
	data, err := json.MarshalIndent(run, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	results := filepath.Join(*programs, "results")
	if err := errors.Join(os.MkdirAll(results, 0o755),
		os.WriteFile(filepath.Join(results, strings.ReplaceAll(run.Name, " ", "-")+".json"), data, 0o644)); err != nil {
		t.Fatal(err)
	}
	if len(run.Specs) == 0 {
		t.Fatal("no spec ran; does --focus match any?")
	}
	for _, spec := range run.Specs {
		if spec.State != report.Passed && report.NeedsMore(spec.Name) == "" {
			t.Errorf("%s: %s: %s", spec.State, spec.Name, spec.Reason)
		}
	}
	t.Log(run.Summary())
}
