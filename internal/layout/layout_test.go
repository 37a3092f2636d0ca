package layout

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write docs/reference/files.md instead of comparing with it")

// TestReference compares docs/reference/files.md with the tables. -update writes the file.
func TestReference(t *testing.T) {
	const page = "../../docs/reference/files.md"
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(reference()), 0o644))
	}
	is, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, reference(), string(is), "docs/reference/files.md is stale; run: go test ./internal/layout -run TestReference -update")
}

func reference() string {
	var b strings.Builder
	b.WriteString("# Files\n\n<!-- Generated from internal/layout/table.go by \"go test ./internal/layout -run TestReference -update\". -->\n")
	for _, table := range []struct {
		title, about string
		entries      []Entry
	}{
		{
			"Data directory", "`" + DefaultData + "` (`--data-dir`), mode 0700, holds what must survive a reboot.", DataEntries(),
		},
		{
			"Run directory",
			"`" + DefaultRun + "` (`--run-dir`), mode 0711, holds what a reboot may take. Users of pods must be able to pass through it to the root file systems of their containers.",
			RunEntries(),
		},
	} {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| path | what | mode |\n|---|---|---|\n", table.title, table.about)
		for _, e := range table.entries {
			path := "`" + e.Path + "`"
			if e.Setting != "" {
				path += " (`--" + e.Setting + "`)"
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", path, e.What, e.Mode)
		}
	}
	fmt.Fprintf(&b, `
## Elsewhere

| path | what | mode |
|---|---|---|
| %[1]s%[2]s%[1]s, %[1]s%[2]s.d/*.yaml%[1]s | settings: [settings](settings.md) | |
| %[1]s%[3]s%[1]s (%[1]s--kubelet-dir%[1]s) | pods' volumes and plugins' sockets; the file %[1]s.mote%[1]s marks it as used by mote | |
| %[1]s/var/log/pods%[1]s, %[1]s/var/log/containers%[1]s | container logs; the kubelet's places for them cannot be changed | |
| %[1]s%[4]s/%[1]s | a directory for each %[1]smote run%[1]s, only while it runs | 0700 |
| %[1]s/var/cache/mote/<sha256>/mote%[1]s (%[1]sMOTE_CACHE_DIR%[1]s) | the program that the packed file unpacked | 0755 |
`, "`", Config, DefaultKubelet, Sandboxes)
	return b.String()
}

// TestMethodsAreListed calls each method and finds its result, or a directory above it, in the
// table.
func TestMethodsAreListed(t *testing.T) {
	for _, root := range []struct {
		value   any
		entries []Entry
		owns    func(string) bool
	}{{Data("/d"), DataEntries(), OwnsData}, {Run("/d"), RunEntries(), OwnsRun}} {
		v := reflect.ValueOf(root.value)
		for i := range v.NumMethod() {
			name, method := v.Type().Method(i).Name, v.Method(i)
			args := make([]reflect.Value, method.Type().NumIn())
			for j := range args {
				args[j] = reflect.Zero(method.Type().In(j))
			}
			path, err := filepath.Rel("/d", method.Call(args)[0].String())
			require.NoError(t, err)
			first, _, _ := strings.Cut(path, "/")
			require.True(t, root.owns(first), "%s: reset would leave %s", name, path)
			require.True(t, listed(root.entries, path), "%s: %s is not in the table", name, path)
		}
	}
}

func listed(entries []Entry, path string) bool {
	for _, e := range entries {
		if match, err := filepath.Match(e.Path, path); err == nil && match {
			return true // also a pattern, such as server/*.kubeconfig
		}
		dir := strings.TrimSuffix(e.Path, "/")
		if path == dir || strings.HasSuffix(e.Path, "/") && strings.HasPrefix(path, e.Path) || strings.HasPrefix(e.Path, path+"/") {
			return true
		}
		if half, ok := strings.CutSuffix(e.Path, "0"); ok && strings.HasPrefix(path, half) {
			return true
		}
	}
	return false
}

func TestOwns(t *testing.T) {
	for _, name := range []string{"server", "audit", "restore.new", "replaced-20261130T120000Z-2", ".kubeconfig.tmp"} {
		require.True(t, OwnsData(name), name)
	}
	for _, name := range []string{"mine", "server2", ".mine", "sockets"} {
		require.False(t, OwnsData(name), name)
	}
	require.True(t, OwnsRun(".volumes.new"))
	require.False(t, OwnsRun("server"))
}
