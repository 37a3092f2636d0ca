// Command page writes docs/conformance.md from the results in a directory. scripts/conformance
// calls it from the repository's root:
//
//	go run ./test/conformance/page bin/conformance/results
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mote-k8s/mote/test/conformance/report"
)

const path = "docs/conformance.md"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "page: want one argument, the directory of results")
		os.Exit(1)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "page:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return err
	}
	var results []report.Run
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var r report.Run
		if err := json.Unmarshal(data, &r); err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		results = append(results, r)
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(report.Page(string(old), results)), 0o644)
}
