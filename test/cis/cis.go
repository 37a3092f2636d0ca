// Package cis has mote's answers to the controls of the CIS Kubernetes benchmark, in controls.yaml.
// The page docs/explanation/security.md and the test of a running cluster (test/e2e) are both based
// on it.
package cis

import (
	_ "embed"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// Answers to a control.
const (
	Default       = "default"
	Profile       = "profile"
	NotApplicable = "n/a"
	Yours         = "yours"
)

//go:embed controls.yaml
var table []byte

// Section has the controls below one heading of the benchmark.
type Section struct {
	Title    string    `json:"title"`
	Controls []Control `json:"controls"`
}

// Control is one control and the answer to it.
type Control struct {
	ID     string `json:"id"`
	Text   string `json:"text"`
	Answer string `json:"answer"`
	Why    string `json:"why"`
	Check  string `json:"check"` // controls.yaml lists the possible checks
}

// Checks splits Check into its words, one slice for each condition.
func (c Control) Checks() [][]string {
	var checks [][]string
	for check := range strings.SplitSeq(c.Check, ";") {
		if words := strings.Fields(check); len(words) > 0 {
			checks = append(checks, words)
		}
	}
	return checks
}

// Sections returns the whole table, in the order of the benchmark.
func Sections() ([]Section, error) {
	var sections []Section
	if err := yaml.UnmarshalStrict(table, &sections); err != nil {
		return nil, fmt.Errorf("controls.yaml: %w", err)
	}
	return sections, nil
}

// Markdown returns the table for readers.
func Markdown(sections []Section) string {
	words := map[string]string{
		Default: "passes", Profile: "passes with `--profile=cis`", NotApplicable: "does not apply", Yours: "yours",
	}
	var b strings.Builder
	for _, section := range sections {
		fmt.Fprintf(&b, "### %s\n\n| control | about | answer | |\n|---|---|---|---|\n", section.Title)
		for _, c := range section.Controls {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", c.ID, c.Text, words[c.Answer], c.Why)
		}
		b.WriteString("\n")
	}
	return b.String()
}
