package settings

import (
	goflag "flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestReference compares docs/reference/settings.md with the table. -update writes the file.
func TestReference(t *testing.T) {
	const page = "../../docs/reference/settings.md"
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(reference()), 0o644))
	}
	is, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, reference(), string(is), "docs/reference/settings.md is stale; run: go test ./machine/settings -run TestReference -update")
}

var update = goflag.Bool("update", false, "write docs/reference instead of comparing with it")

// reference returns the content of docs/reference/settings.md: the table for people.
func reference() string {
	var b strings.Builder
	b.WriteString(`# Settings

<!-- Made from machine/settings/table.go by "go test ./machine/settings -run TestReference -update". -->

Each setting is a flag, an environment variable and a key of a configuration file under one name.
The first found counts: flag, environment, file, default.

Files are ` + "`" + DefaultConfig + "`" + ` (or what ` + "`--config`" + ` or ` + "`MOTE_CONFIG`" + ` names) and then, sorted by name,
the ` + "`*.yaml`" + ` in the directory of the same name with ` + "`.d`" + ` behind it. A later file replaces what an
earlier one said. A list is replaced as a whole, by a later file as by a variable or a flag; write the
key with a plus sign (` + "`tls-san+:`" + `) to append to what the files before said. An unknown key is an error.

In the environment the items of a list are separated by spaces. As a flag, a list's item is one flag:
` + "`--tls-san a --tls-san b`" + `.

` + "```yaml" + `
# /etc/mote/config.yaml
https-listen-port: 7443
tls-san: [kube.example.com, 192.0.2.10]
kubelet-arg:
  - max-pods=50
` + "```\n")
	section := ""
	for _, s := range Table() {
		if s.Section != section {
			section = s.Section
			fmt.Fprintf(&b, "\n## %s\n\n| flag and key | variable | default | meaning | taken by |\n|---|---|---|---|---|\n", section)
		}
		verbs := "server"
		if len(s.Verbs) > 0 {
			verbs = strings.Join(s.Verbs, ", ")
		}
		fmt.Fprintf(&b, "| `--%s` | `%s` | %s | %s | %s |\n", s.Name, Env(s.Name), s.defaultText(), s.meaning(), verbs)
	}
	return b.String()
}

func (s *Setting) defaultText() string {
	switch {
	case s.DefaultHelp != "":
		return s.DefaultHelp
	case s.Default != "":
		return "`" + s.Default + "`"
	}
	return "none"
}

func (s *Setting) meaning() string {
	v := s.value(&Settings{})
	help := s.Help
	if len(v.choices) > 0 {
		help += " (`" + strings.Join(v.choices, "`, `") + "`)"
	}
	if v.list {
		help += "; a list"
	}
	return help
}
