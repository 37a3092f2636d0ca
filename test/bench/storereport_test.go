package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestReportsKeepEachOther checks that each bench writes only its own section of the file.
func TestReportsKeepEachOther(t *testing.T) {
	out := filepath.Join(t.TempDir(), "benchmarks.md")
	store := &storeBench{storeOptions: storeOptions{out: out, dir: t.TempDir(), write: true, rounds: 1}}
	clusters := options{out: out, dir: t.TempDir(), write: true}
	addons := &addonBench{addonOptions: addonOptions{options: options{out: out, dir: t.TempDir(), write: true}}}
	var printed bytes.Buffer
	for range 2 {
		require.NoError(t, addons.report(&printed, time.Second))
		require.NoError(t, store.report(&printed, time.Second))
		require.NoError(t, clusters.report(&printed, measured{}, time.Second))
	}
	text, err := os.ReadFile(out)
	require.NoError(t, err)
	for _, heading := range []string{clustersHeading, storeHeading, addonsHeading, "### Requests\n"} {
		require.Equal(t, 1, bytes.Count(text, []byte("\n"+heading))+bytes.Count(text[:len(heading)], []byte(heading)), heading)
	}
	require.Less(t, bytes.Index(text, []byte(clustersHeading)), bytes.Index(text, []byte(storeHeading)))
	require.Less(t, bytes.Index(text, []byte(storeHeading)), bytes.Index(text, []byte(addonsHeading)))
}
