package features

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Check is one check of a test.
type Check struct {
	ID, What string
	Source   string // the file with the check, relative to the repository's root
	Result   string // "not run", or a result and its run
}

// NotRun is the result of a check without a known run.
const NotRun = "not run"

// Scan finds the checks in the tests' sources below root, sorted by source.
func Scan(root string) ([]Check, error) {
	call := regexp.MustCompile(`features\.(?:Row|Begin)\(t, ("[A-Z]\d+"), ("(?:[^"\\]|\\.)*")\)`)
	command := regexp.MustCompile(`(?m)^(?:\[[^\]]*\] *)*row ([A-Z]\d+) (.*)$`)
	var checks []Check
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() && (rel == "bin" || strings.HasPrefix(d.Name(), ".") && rel != ".") {
			return filepath.SkipDir
		}
		script := filepath.Ext(path) == ".txtar"
		if d.IsDir() || !script && !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pattern := call
		if script {
			pattern = command
			text, _, _ = bytes.Cut(text, []byte("\n-- ")) // the files of a script have no commands
		}
		for _, m := range pattern.FindAllStringSubmatch(string(text), -1) {
			c := Check{ID: m[1], What: strings.Join(strings.Fields(m[2]), " "), Source: filepath.ToSlash(rel), Result: NotRun}
			if !script {
				if c.ID, err = strconv.Unquote(m[1]); err != nil {
					return fmt.Errorf("%s: %w", rel, err)
				}
				if c.What, err = strconv.Unquote(m[2]); err != nil {
					return fmt.Errorf("%s: %w", rel, err)
				}
			}
			checks = append(checks, c)
		}
		return nil
	})
	return checks, err
}

// Results reads the files that runs have left in dir. It returns the result and the run of each
// check, by Key. A check that began and never ended has failed.
func Results(dir string) (map[string]string, error) {
	results := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if err := readResults(results, string(text)); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
	}
	return results, nil
}

func readResults(results map[string]string, text string) error {
	run := ""
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if fields[0] == "run" && len(fields) == 2 {
			run = fields[1]
			continue
		}
		if len(fields) != 3 || run == "" {
			return fmt.Errorf("line %q is no result of a run", line)
		}
		key := Key(fields[1], fields[2])
		switch fields[0] {
		case "skipped":
			results[key] = NotRun
		case "begin":
			results[key] = "failed, " + run
		default:
			results[key] = fields[0] + ", " + run
		}
	}
	return nil
}

// Key identifies a check across runs.
func Key(id, what string) string { return id + " " + what }

// Page returns the text of docs/features.md.
func Page(features []Feature, checks []Check) string {
	byID := map[string][]Check{}
	for _, c := range checks {
		byID[c.ID] = append(byID[c.ID], c)
	}
	var b strings.Builder
	b.WriteString(pageHead)
	fmt.Fprintf(&b, "\n%s\n", summary(features, byID))
	group := ""
	for _, f := range features {
		if f.Group != group {
			group = f.Group
			fmt.Fprintf(&b, "\n## %s\n\n| row | check | where | result |\n|---|---|---|---|\n", group)
		}
		fmt.Fprintf(&b, "| **%s** | **%s** | | %s |\n", f.ID, f.What, verdict(byID[f.ID]))
		for _, c := range byID[f.ID] {
			fmt.Fprintf(&b, "| %s | %s | `%s` | %s |\n", c.ID, strings.ReplaceAll(c.What, "|", "\\|"), c.Source, c.Result)
		}
	}
	return b.String()
}

const pageHead = `# Features

<!-- Made by scripts/features from results of scripts/test. Do not edit. -->

Each row is something that a user expects of a cluster; below it stand the checks that the tests make of it on
the real program, on a private machine without any network, and how each last ended. A row promises
more than its checks look at: what is not listed was not looked at. "Not run" means that this page knows of no run.
The date and the commit are those of the run.
`

// verdict summarises the checks of one row.
func verdict(checks []Check) string {
	if len(checks) == 0 {
		return "no check yet"
	}
	passed := 0
	for _, c := range checks {
		if strings.HasPrefix(c.Result, "failed") {
			return "**failed**"
		}
		if strings.HasPrefix(c.Result, "passed") {
			passed++
		}
	}
	switch passed {
	case len(checks):
		return "passed"
	case 0:
		return NotRun
	}
	return fmt.Sprintf("%d of %d ran and passed", passed, len(checks))
}

func summary(features []Feature, byID map[string][]Check) string {
	count := map[string]int{}
	for _, f := range features {
		v := verdict(byID[f.ID])
		if strings.Contains(v, " ran and ") {
			v = "passed in part"
		}
		count[strings.Trim(v, "*")]++
	}
	var parts []string
	for _, v := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%s: %d", v, count[v]))
	}
	return fmt.Sprintf("Of %d rows: %s.", len(features), strings.Join(parts, ", "))
}

// PageResults reads the results in a page, by Key: those of runs whose files are no longer
// available.
func PageResults(page string) (map[string]string, error) {
	results := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(page))
	for lines.Scan() {
		cells := strings.Split(strings.ReplaceAll(lines.Text(), "\\|", "\x00"), " | ")
		if len(cells) != 4 || strings.Contains(cells[0], "*") || cells[0] == "| row" {
			continue
		}
		id := strings.TrimPrefix(cells[0], "| ")
		what := strings.ReplaceAll(cells[1], "\x00", "|")
		results[Key(id, what)] = strings.TrimSuffix(cells[3], " |")
	}
	if len(results) == 0 && page != "" {
		return nil, errors.New("the page holds no results")
	}
	return results, lines.Err()
}
