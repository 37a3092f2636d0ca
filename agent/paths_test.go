package agent

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheckPaths(t *testing.T) {
	good := Config{DataDir: "/srv/a b=$c%d'e/ü", RunDir: "/" + strings.Repeat("r", maxRunDir-1), KubeletDir: "/var/lib/kubelet"}
	require.NoError(t, checkPaths(good))
	for path, odd := range map[string]string{"/srv/a:b": ":", "/srv/a,b": ",", `/srv/a\b`: `\`, "/srv/a\nb": "\n", "/srv/a\xffb": "\xff"} {
		for setting, change := range map[string]func(*Config){
			"data-dir": func(c *Config) { c.DataDir = path }, "run-dir": func(c *Config) { c.RunDir = path }, "kubelet-dir": func(c *Config) { c.KubeletDir = path },
		} {
			c := good
			change(&c)
			err := checkPaths(c)
			require.ErrorContains(t, err, "--"+setting)
			require.NotContains(t, err.Error(), "\n", "one line")
			_, found := oddRune(odd, oddRunes)
			require.True(t, found)
		}
	}
	percent := good
	percent.RunDir = "/run/a%d" // once: "datastore endpoint is not a URL"
	require.ErrorContains(t, checkPaths(percent), `--run-dir "/run/a%d" has "%" in it`)
	good.RunDir += "r"
	require.ErrorContains(t, checkPaths(good), "choose a directory of 31 at most")
}
