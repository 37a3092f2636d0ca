package report

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const ginkgoReport = `[{"SpecReports": [
	{"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"},
	{"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeText": "should run", "LeafNodeType": "It", "State": "passed", "RunTime": 2000000000},
	{"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeText": "should fail", "LeafNodeType": "It", "State": "panicked",
	 "Failure": {"Message": "a | b\nc"}},
	{"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeText": "wants two nodes", "LeafNodeType": "It", "State": "skipped",
	 "Failure": {"Message": "Requires at least 2 nodes (not 1)"}},
	{"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeText": "is filtered out", "LeafNodeType": "It", "State": "skipped"}
]}]`

func TestSpecs(t *testing.T) {
	specs, err := Specs([]byte(ginkgoReport))
	require.NoError(t, err)
	require.Equal(t, []Spec{
		{Name: "[sig-node] Pods should run", State: Passed, Took: 2 * time.Second},
		{Name: "[sig-node] Pods should fail", State: "panicked", Reason: "a | b\nc"},
		{Name: "[sig-node] Pods wants two nodes", State: Skipped, Reason: "Requires at least 2 nodes (not 1)"},
	}, specs)
}

func TestSpecsShowFailureOfSuite(t *testing.T) {
	specs, err := Specs([]byte(`[{"SpecialSuiteFailureReasons": ["Suite timed out"],
		"SpecReports": [{"LeafNodeType": "BeforeSuite", "State": "failed", "Failure": {"Message": "no API"}}]}]`))
	require.NoError(t, err)
	require.Equal(t, []Spec{
		{Name: "BeforeSuite", State: Failed, Reason: "no API"},
		{Name: "the suite", State: Failed, Reason: "Suite timed out"},
	}, specs)
}

func TestAgain(t *testing.T) {
	run := Run{Specs: []Spec{{Name: "a", State: Passed}, {Name: "b", State: Failed, Reason: "no image"}}}
	require.Equal(t, run.Specs[1:], run.Failures())
	run.Again([]Spec{{Name: "b", State: Passed}})
	require.Empty(t, run.Failures())
	require.Equal(t, []Spec{{Name: "a", State: Passed}, {Name: "b", State: Passed, First: "no image"}}, run.Specs)
	require.Contains(t, Page("", []Run{run}), "| b | passed | no image |")
}

func TestReadLog(t *testing.T) {
	v, err := ReadLog(strings.NewReader(`time=T level=WARN msg="pod 0123456789ab is gone" component=kubelet
time=T level=WARN msg="pod fedcba987654 is gone" component=kubelet
time=T level=INFO msg=ready component=dns
goroutine 1 [running]:
`))
	require.NoError(t, err)
	require.Equal(t, Log{
		Lines:  4,
		Levels: map[string]int{"WARN": 2, "INFO": 1, "-": 1},
		Kinds:  map[string]int{`WARN kubelet "pod N is gone"`: 2, "INFO dns ready": 1, "- - -": 1},
	}, v)
}

// TestPageKeepsOtherRuns checks that a run replaces its own row and section and no others.
func TestPageKeepsOtherRuns(t *testing.T) {
	specs, err := Specs([]byte(ginkgoReport))
	require.NoError(t, err)
	run := Run{
		Name: "iptables", Date: "2026-11-30", Commit: "abc", Command: "scripts/conformance --proxy iptables", Procs: 6,
		Specs: specs, Before: Usage{AnonymousMB: 225}, After: Usage{AnonymousMB: 230},
		Log: Log{Lines: 3, Levels: map[string]int{"WARN": 2}, Kinds: map[string]int{"WARN kubelet gone": 2}}, Images: map[string]string{"etcd": "etcd"},
	}
	page := Page("", []Run{run})
	require.Contains(t, page, "| iptables | 2026-11-30 | abc | 3 | 1 | 1 | 1 |")
	require.Contains(t, page, `| [sig-node] Pods should fail | panicked | a \| b c |`)
	require.Contains(t, page, "| anonymous memory, MB | 225 | 230 |")

	again := run
	again.Name, again.Date = "cgroup v2", "2026-12-01"
	page = Page(page, []Run{again})
	require.Contains(t, page, "| iptables | 2026-11-30 |")
	require.Contains(t, page, "| cgroup v2 | 2026-12-01 |")
	require.Equal(t, 2, strings.Count(page, "\n## Run "))

	require.Equal(t, page, Page(page, nil), "a page without a new run")
	require.Equal(t, page, Page(page, []Run{{Name: "iptables", Partial: true}}), "a partial run is not for the page")
	run.Date = "2026-12-02"
	page = Page(page, []Run{run})
	require.NotContains(t, page, "2026-11-30")
	require.Equal(t, 2, strings.Count(page, "\n## Run "))
}
