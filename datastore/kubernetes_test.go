package datastore_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var kubernetes = flag.Bool("kubernetes", false, "run the apiserver's own storage tests, which takes minutes")

// TestKubernetes runs the storage tests of k8s.io/apiserver, of the version that mote embeds,
// through its etcd client and through its cache. They run in a copy of the module in which this
// package replaces the etcd that they start.
func TestKubernetes(t *testing.T) {
	if !*kubernetes {
		t.Skip("needs -kubernetes")
	}
	output := func(name string, args ...string) string {
		out, err := exec.CommandContext(t.Context(), name, args...).Output()
		require.NoError(t, err, "%s %s", name, args)
		return strings.TrimSpace(string(out))
	}
	upstream := output("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/apiserver")
	module := filepath.Join(t.TempDir(), "apiserver")
	require.NoError(t, os.CopyFS(module, os.DirFS(upstream)))
	write := func(path, text string) {
		require.NoError(t, os.RemoveAll(path)) // upstream's files are read-only
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	etcd3 := filepath.Join(module, "pkg", "storage", "etcd3")
	ours, err := os.ReadFile(filepath.Join("testdata", "kubernetes", "test_server.go"))
	require.NoError(t, err)
	write(filepath.Join(etcd3, "testserver", "test_server.go"), string(ours))
	// One of the tests names the type of etcd's configuration.
	text, err := os.ReadFile(filepath.Join(etcd3, "store_test.go"))
	require.NoError(t, err)
	write(filepath.Join(etcd3, "store_test.go"), strings.Replace(string(text),
		`"go.etcd.io/etcd/server/v3/embed"`, `embed "k8s.io/apiserver/pkg/storage/etcd3/testserver"`, 1))

	root := filepath.Dir(output("go", "env", "GOMOD"))
	modfile := filepath.Join(t.TempDir(), "go.mod")
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		write(filepath.Join(filepath.Dir(modfile), name), string(text))
	}
	output("go", "mod", "edit", "-replace=k8s.io/apiserver="+module, modfile)
	run := exec.CommandContext(t.Context(), "go", "test", "-mod=mod", "-modfile="+modfile, "-count=1", "-timeout=20m",
		"k8s.io/apiserver/pkg/storage/etcd3", "k8s.io/apiserver/pkg/storage/cacher")
	run.Stdout, run.Stderr = os.Stdout, os.Stderr
	require.NoError(t, run.Run())
}
