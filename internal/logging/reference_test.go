package logging

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write docs/reference instead of comparing with it")

// TestReference compares docs/reference/log.md with the table. -update writes the file.
func TestReference(t *testing.T) {
	const page = "../../docs/reference/log.md"
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(reference()), 0o644))
	}
	is, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, reference(), string(is), "docs/reference/log.md is stale; run: go test ./internal/logging -run TestReference -update")
}

func reference() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# The log

<!-- Made from internal/logging by "go test ./internal/logging -run TestReference -update". -->

`+"`mote server`"+` writes one log to standard error (`+"`--log-level`, `--log-format`"+`) and keeps its newest 1 to 2 MiB for
`+"`mote logs`"+`. Everything that runs in the process writes there. Each line has the key `+"`component`"+`: %s for upstream code,
`+"`mote`"+` and the names in `+"`mote status`"+` for mote's own.

A line at level ERROR needs somebody's attention. A healthy start, restart, stop or idle hour has none.

- The routine of upstream components (their level info) is at level debug.
- A warning or error that repeats is written %d times; from then on one line a minute shows the newest one with
  `+"`repeated=N`"+`, until a minute passes without it. Two lines are of one kind if level, component, message and error
  are the same, apart from numbers and quoted names.
- The lines below are written by healthy clusters too. They are at level debug in the phase in the last column: "start" ends
  one minute after everything is ready, "stop" begins with the signal. In other phases, or with another error, they stay what they are.

## Expected lines

| component | message | error contains | why | when |
|---|---|---|---|---|
`, "`"+strings.Join(Components(), "`, `")+"`", limitBurst)
	for _, e := range Expected() {
		message := cell(e.Message)
		if e.Key != "" {
			message += " with " + cell(e.Key+"="+e.Value)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s [Source](%s) | %s |\n", e.Component, message, cell(e.Err), e.Reason, e.Source, e.During)
	}
	return b.String()
}

// cell returns text as code in a cell of a table.
func cell(text string) string {
	switch text {
	case "":
		return ""
	case "*":
		return "any"
	}
	return "`" + strings.NewReplacer("\n", " ", "|", `\|`).Replace(text) + "`"
}
