package cis_test

import (
	goflag "flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/test/cis"
)

var update = goflag.Bool("update", false, "write the table into docs/explanation/security.md")

// TestTable checks that every control of the benchmark is in the table, and that each control that
// passes has a check.
func TestTable(t *testing.T) {
	sections, err := cis.Sections()
	require.NoError(t, err)
	count := map[string]int{}
	var ids []string
	for _, section := range sections {
		for _, c := range section.Controls {
			number, _, _ := strings.Cut(section.Title, " ")
			require.True(t, strings.HasPrefix(c.ID, number+"."), "%s below %s", c.ID, section.Title)
			count[number]++
			ids = append(ids, c.ID)
			switch c.Answer {
			case cis.Default, cis.Profile:
				require.NotEmpty(t, c.Checks(), "%s passes and has no check", c.ID)
			case cis.NotApplicable, cis.Yours:
				require.Empty(t, c.Check, "%s has a check that is never run", c.ID)
				require.NotEmpty(t, c.Why, "%s says not why", c.ID)
			default:
				t.Errorf("%s has answer %q", c.ID, c.Answer)
			}
		}
	}
	// The same number as in kube-bench's cfg/cis-1.12.
	require.Equal(t, map[string]int{
		"1.1": 21, "1.2": 30, "1.3": 7, "1.4": 2, "2": 7, "3.1": 3, "3.2": 2, "4.1": 10, "4.2": 14, "4.3": 1,
		"5.1": 13, "5.2": 12, "5.3": 2, "5.4": 2, "5.5": 1, "5.6": 4,
	}, count)
	slices.Sort(ids)
	require.Len(t, slices.Compact(ids), 131)
}

// TestPage checks that the page matches the table. -update writes it.
func TestPage(t *testing.T) {
	const page, begin, end = "../../docs/explanation/security.md", "<!-- controls -->\n\n", "<!-- end of controls -->\n"
	sections, err := cis.Sections()
	require.NoError(t, err)
	is, err := os.ReadFile(page)
	require.NoError(t, err)
	head, rest, found := strings.Cut(string(is), begin)
	require.True(t, found, "%s has no line %q", page, begin)
	_, tail, found := strings.Cut(rest, end)
	require.True(t, found, "%s has no line %q", page, end)
	want := head + begin + cis.Markdown(sections) + end + tail
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(want), 0o644))
		return
	}
	require.Equal(t, want, string(is), "%s is stale; run: go test ./test/cis -run TestPage -update", page)
}
