package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Each bench writes its own section of the report, which begins with one of these lines.
const (
	clustersHeading = "# Benchmarks\n"
	storeHeading    = "## Datastore\n"
	addonsHeading   = "## Addons\n"
)

// replaceSection puts text, which begins with its heading, into the report at path and keeps the
// sections of the other benches.
func replaceSection(path, heading, text string) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	headings := []string{clustersHeading, storeHeading, addonsHeading}
	sections := map[string]string{clustersHeading: clustersHeading}
	current := clustersHeading
	for line := range strings.Lines(strings.TrimPrefix(string(old), clustersHeading)) {
		for _, h := range headings[1:] {
			if line == h {
				current = h
			}
		}
		sections[current] += line
	}
	sections[heading] = text
	var whole strings.Builder
	for _, h := range headings {
		if part := strings.TrimSpace(sections[h]); part != "" {
			fmt.Fprint(&whole, part, "\n\n")
		}
	}
	return os.WriteFile(path, []byte(strings.TrimSpace(whole.String())+"\n"), 0o644)
}
