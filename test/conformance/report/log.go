package report

import (
	"bufio"
	"io"
	"regexp"
)

// Log counts the lines of the server's log.
type Log struct {
	Lines  int
	Levels map[string]int
	Kinds  map[string]int // by level, component and message
}

var (
	logLevel     = regexp.MustCompile(`\blevel=(\w+)`)
	logMessage   = regexp.MustCompile(`\bmsg=("(?:[^"\\]|\\.)*"|\S+)`)
	logComponent = regexp.MustCompile(`\bcomponent=(\S+)`)
	changing     = regexp.MustCompile(`[0-9a-f]{8,}|\d+`)
)

// ReadLog counts the lines of a server's log. The kind of a line leaves out the numbers in its
// message.
func ReadLog(r io.Reader) (Log, error) {
	v := Log{Levels: map[string]int{}, Kinds: map[string]int{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		v.Lines++
		level := first(logLevel, lines.Text())
		v.Levels[level]++
		v.Kinds[level+" "+first(logComponent, lines.Text())+" "+changing.ReplaceAllString(first(logMessage, lines.Text()), "N")]++
	}
	return v, lines.Err()
}

func first(re *regexp.Regexp, line string) string {
	if m := re.FindStringSubmatch(line); m != nil {
		return m[1]
	}
	return "-"
}
