package machine

import (
	"fmt"
	"strings"
	"testing"
)

// console answers each line that is typed with the next of its answers.
type console struct {
	g       *guest
	answers []string
}

func (c *console) Write(p []byte) (int, error) {
	if len(c.answers) == 0 {
		return 0, fmt.Errorf("nothing more is expected, got %q", p)
	}
	answer := c.answers[0]
	c.answers = c.answers[1:]
	_, err := c.g.Write([]byte(answer))
	return len(p), err
}

// TestRestartsAreNoticed checks that a command is run again in the fresh shell after a lockup that
// the console shows, and after one whose last messages came before the command.
func TestRestartsAreNoticed(t *testing.T) {
	shell := "\r\nBusyBox v1.35.0 " + banner + "\r\n\r\n" + prompt
	for name, restart := range map[string]string{
		"seen":   "watchdog: BUG\r\n" + lockup + ": hung tasks\r\n" + shell,
		"unseen": shell,
	} {
		t.Run(name, func(t *testing.T) {
			g := &guest{news: make(chan struct{}), ended: make(chan struct{})}
			g.stdin = &console{g, []string{restart, "@@end 0\r\n", "found\r\n@@end 1\r\n"}}
			out, code := g.try(t, "look")
			if strings.TrimSpace(out) != "found" || code != 1 || g.lockups != 1 {
				t.Errorf("output %q, code %d, %d lockups; want that of the second try after one lockup", out, code, g.lockups)
			}
		})
	}
}
