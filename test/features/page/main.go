// Command page writes docs/features.md from the results in a directory. It takes checks that these
// do not name from the current page. scripts/features calls it from the repository's root:
//
//	go run ./test/features/page bin/features
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"

	"github.com/mote-k8s/mote/test/features"
)

const path = "docs/features.md"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "page: want one argument, the folder of results")
		os.Exit(1)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "page:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	table, err := features.Table()
	if err != nil {
		return err
	}
	checks, err := features.Scan(".")
	if err != nil {
		return err
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	results, err := features.PageResults(string(old))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	fresh, err := features.Results(dir)
	if err != nil {
		return err
	}
	maps.Copy(results, fresh)
	for i, c := range checks {
		if result, ok := results[features.Key(c.ID, c.What)]; ok {
			checks[i].Result = result
		}
	}
	return os.WriteFile(path, []byte(features.Page(table, checks)), 0o644)
}
