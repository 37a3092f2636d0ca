package sandbox

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLookPath checks that LookPath finds, before the start, the errors that exec(2) would find
// after it.
func TestLookPath(t *testing.T) {
	if otherFormats() {
		t.Skip("this kernel runs other formats too")
	}
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(path, []byte(content), mode))
		return path
	}
	require.NoError(t, LookPath("kubectl"))
	require.NoError(t, LookPath("sh"))
	require.NoError(t, LookPath(file("good", "#!/bin/sh\ntrue\n", 0o755)))
	require.NoError(t, LookPath(file("words", "#! /usr/bin/env sh\ntrue\n", 0o755)))
	require.ErrorIs(t, LookPath("no-such-program"), exec.ErrNotFound)
	require.ErrorIs(t, LookPath(file("mode", "#!/bin/sh\n", 0o644)), fs.ErrPermission)
	for name, content := range map[string]string{"bare": "true\n", "empty": "", "nothing": "#!\n", "lost": "#!/no/such/shell\n"} {
		path := file(name, content, 0o755)
		err := LookPath(path)
		require.ErrorIs(t, err, ErrNoProgram, name)
		_, ran := exec.Command(path).Output()
		require.Error(t, ran, "exec(2) runs it: %s", name)
	}
}
