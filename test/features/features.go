package features

import (
	_ "embed"
	"fmt"
	"os"
	"strings"
	"testing"
)

// ResultsVariable names the environment variable with the file to which checks append their
// results.
const ResultsVariable = "MOTE_TEST_FEATURES"

//go:embed features.txt
var table string

// Feature is one row of the table.
type Feature struct {
	ID    string // a letter and a number: B1
	Group string // the heading above it
	What  string
}

// Table returns all rows, in order.
func Table() ([]Feature, error) {
	var all []Feature
	group := ""
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			group = strings.TrimSpace(strings.TrimPrefix(line, "#"))
			continue
		}
		id, what, ok := strings.Cut(line, " ")
		if !ok {
			return nil, fmt.Errorf("features.txt: line %q is not an id and what it stands for", line)
		}
		all = append(all, Feature{ID: id, Group: group, What: strings.TrimSpace(what)})
	}
	return all, nil
}

// Row records that the rest of the test proves the row id. what names the check. Both must be
// literals, for Scan.
func Row(t testing.TB, id, what string) {
	t.Helper()
	end := Begin(t, id, what)
	t.Cleanup(func() { end(!t.Failed(), t.Skipped()) })
}

// Begin is Row for a check that ends before its test does. Call the function that it returns with
// the result.
func Begin(t testing.TB, id, what string) (end func(passed, skipped bool)) {
	t.Helper()
	record(t, "begin", id, what)
	return func(passed, skipped bool) {
		switch {
		case skipped:
			record(t, "skipped", id, what)
		case passed:
			record(t, "passed", id, what)
		default:
			record(t, "failed", id, what)
		}
	}
}

// record appends one line in one write, so that processes may share the file.
func record(t testing.TB, result, id, what string) {
	t.Helper()
	path := os.Getenv(ResultsVariable)
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Errorf("write down the result of %s: %v", id, err)
		return
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s\t%s\t%s\n", result, id, what); err != nil {
		t.Errorf("write down the result of %s: %v", id, err)
	}
}
