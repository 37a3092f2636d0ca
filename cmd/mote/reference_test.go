package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write docs/reference instead of comparing with it")

// TestReference compares docs/reference/commands.md with the help of every verb. -update writes the
// file.
func TestReference(t *testing.T) {
	const page = "../../docs/reference/commands.md"
	var b bytes.Buffer
	b.WriteString("# Commands\n\n<!-- Made from the verbs' help by \"go test ./cmd/mote -run TestReference -update\". -->\n\n" +
		"What the flags that are settings mean, and where else they can be set: [settings](settings.md).\n")
	writeReference(&b, newRootCommand(testEnv()))
	if *update {
		require.NoError(t, os.WriteFile(page, b.Bytes(), 0o644))
	}
	is, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, b.String(), string(is), "docs/reference/commands.md is stale; run: go test ./cmd/mote -run TestReference -update")
}

func writeReference(b *bytes.Buffer, cmd *cobra.Command) {
	if cmd.Name() == "help" {
		return
	}
	cmd.InitDefaultHelpFlag()
	fmt.Fprintf(b, "\n## %s\n\n```\n", cmd.CommandPath())
	if cmd.DisableFlagParsing {
		fmt.Fprintf(b, "%s. It takes %s's own flags.\n", cmd.Short, cmd.Name())
	} else {
		writeHelp(b, cmd)
	}
	b.WriteString("```\n")
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			writeReference(b, c)
		}
	}
}

func testEnv() *env {
	return &env{
		args: []string{"mote"}, stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{},
		getenv: func(string) string { return "" },
	}
}
