// Package report keeps the results of runs of upstream's conformance specs: Specs reads ginkgo's
// report, ReadLog counts the lines of a server's log, and Page writes docs/conformance.md. It reads
// no files and has no access to a cluster. A Run is saved as JSON between the run and the page.
package report

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// States of a spec.
const (
	Passed  = "passed"
	Failed  = "failed"
	Skipped = "skipped" // upstream's own rule, e.g. too few nodes
)

// Run is one run of the specs with one setting.
type Run struct {
	Name     string
	Date     string
	Commit   string
	Command  string
	Settings Settings
	Procs    int
	Took     time.Duration
	Specs    []Spec
	Before   Usage
	After    Usage
	Log      Log
	Images   map[string]string // the contents of each image, by repository
	Partial  bool              // only some specs, for a quick check: not for the page
}

// Settings are those of a run, as the running cluster shows them.
type Settings struct {
	Kubernetes, Mote, Kernel string
	Proxy                    string // kube-proxy's mode
	Cgroup                   string // v1 or v2
	Data                     string // the file system of the data directory
}

// Spec is a spec that ran, or that skipped itself.
type Spec struct {
	Name   string
	State  string
	Reason string `json:",omitempty"` // why it did not pass
	Serial bool   `json:",omitempty"`
	Took   time.Duration
	First  string `json:",omitempty"` // why it did not pass before it ran again
}

// Failures returns the specs of a run that one node should pass and that did not.
func (r Run) Failures() (failures []Spec) {
	for _, spec := range r.Specs {
		if spec.State != Passed && NeedsMore(spec.Name) == "" {
			failures = append(failures, spec)
		}
	}
	return failures
}

// Again replaces the results of specs that ran again. The page shows both.
func (r *Run) Again(later []Spec) {
	for _, spec := range later {
		i := slices.IndexFunc(r.Specs, func(s Spec) bool { return s.Name == spec.Name })
		if i < 0 {
			continue // of the same name in part
		}
		if spec.First = r.Specs[i].First; spec.First == "" {
			spec.First = r.Specs[i].Reason
		}
		r.Specs[i] = spec
	}
}

// NeedsMore returns the reason why a spec cannot pass on one node, or "" if it can.
func NeedsMore(spec string) string {
	return map[string]string{
		"[sig-architecture] Conformance Tests should have at least two untainted nodes [Conformance]": "the spec counts the nodes, and asks for two",
		"[sig-apps] Daemon set [Serial] should rollback without unnecessary restarts [Conformance]":   "the spec asks for two schedulable nodes before it does anything",
	}[spec]
}

// Specs reads the specs from ginkgo's report, without those that a filter left out.
func Specs(data []byte) ([]Spec, error) {
	var suites []struct {
		SpecialSuiteFailureReasons []string
		SpecReports                []struct {
			ContainerHierarchyTexts    []string
			LeafNodeText, LeafNodeType string
			State                      string
			RunTime                    time.Duration
			Failure                    struct {
				Message                       string
				FailureNodeLocation, Location struct {
					FileName   string
					LineNumber int
				}
			}
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("read ginkgo's report: %w", err)
	}
	var specs []Spec
	for _, suite := range suites {
		for _, r := range suite.SpecReports {
			spec := Spec{
				Name:  strings.Join(append(r.ContainerHierarchyTexts, r.LeafNodeText), " "),
				State: r.State, Took: r.RunTime, Reason: r.Failure.Message,
			}
			switch {
			case r.LeafNodeType != "It" && r.State == Passed:
				continue
			case r.LeafNodeType != "It":
				// The suite's own preparation failed.
				spec.Name = r.LeafNodeType
			case r.State == Skipped && r.Failure.Message == "", r.State == "pending":
				continue
			}
			specs = append(specs, spec)
		}
		if len(suite.SpecialSuiteFailureReasons) > 0 {
			specs = append(specs, Spec{Name: "the suite", State: Failed, Reason: strings.Join(suite.SpecialSuiteFailureReasons, "; ")})
		}
	}
	return specs, nil
}

// Usage is the resource usage of the process at one moment.
type Usage struct {
	AnonymousMB, HeapMB, Goroutines, Descriptors int
}
