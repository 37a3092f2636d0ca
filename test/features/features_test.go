package features

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "../.."

// TestPageIsOfThisTree checks that docs/features.md lists the checks that are in the sources, under
// rows that exist.
func TestPageIsOfThisTree(t *testing.T) {
	table, err := Table()
	require.NoError(t, err)
	checks, err := Scan(root)
	require.NoError(t, err)
	page, err := os.ReadFile(filepath.Join(root, "docs", "features.md"))
	require.NoError(t, err)
	results, err := PageResults(string(page))
	require.NoError(t, err)
	seen := map[string]string{}
	for i, c := range checks {
		if !slices.ContainsFunc(table, func(f Feature) bool { return f.ID == c.ID }) {
			t.Errorf("%s proves %s, which is not in features.txt", c.Source, c.ID)
		}
		key := Key(c.ID, c.What)
		if other, ok := seen[key]; ok {
			t.Errorf("%s and %s have the same check %q: say how they differ", c.Source, other, key)
		}
		seen[key] = c.Source
		checks[i].Result = results[key]
	}
	require.Equal(t, Page(table, checks), string(page), "docs/features.md is not of this tree's checks: run scripts/features")
}

func TestResults(t *testing.T) {
	dir := t.TempDir()
	lines := "run\t2026-01-02 abc\nbegin\tB1\tone\npassed\tB1\tone\nbegin\tB1\ttwo\nfailed\tB1\ttwo\nbegin\tB2\thangs\nbegin\tB3\tskips\nskipped\tB3\tskips\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "e2e.txt"), []byte(lines), 0o600))
	results, err := Results(dir)
	require.NoError(t, err)
	require.Equal(t, map[string]string{
		"B1 one": "passed, 2026-01-02 abc", "B1 two": "failed, 2026-01-02 abc",
		"B2 hangs": "failed, 2026-01-02 abc", "B3 skips": NotRun,
	}, results)
}

func TestPageKeepsResults(t *testing.T) {
	table := []Feature{{ID: "B1", Group: "B", What: "pods"}, {ID: "B2", Group: "B", What: "others"}}
	page := Page(table, []Check{{ID: "B1", What: "a | b", Source: "x_test.go", Result: "passed, then"}, {ID: "B1", What: "c", Source: "x", Result: NotRun}})
	require.Contains(t, page, "| **B1** | **pods** | | 1 of 2 ran and passed |")
	require.Contains(t, page, "| **B2** | **others** | | no check yet |")
	results, err := PageResults(page)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"B1 a | b": "passed, then", "B1 c": NotRun}, results)
}
