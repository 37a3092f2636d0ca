package dns

import (
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/parse"
)

// A Corefile may import only from these directories: the keys of the ConfigMap coredns-custom.
// Other distributions use the long form.
const (
	customDir      = "custom"
	customDirOther = "/etc/coredns/custom"
)

// renamed maps a directive of a Corefile to the directive that replaces it here (plugins.go). Each
// replaced plugin is written for a CoreDNS that is alone in its process.
func renamed(directive string) string {
	switch directive {
	case "kubernetes":
		return directiveKubernetes
	case "loop":
		return directiveLoop
	case "prometheus":
		return directivePrometheus
	case "debug", "health", "pprof", "ready", "reload":
		return directiveIgnored
	}
	return directive
}

// rewriter translates a Corefile that was written for a pod into one for this process. Line numbers
// stay the same, so that errors name the user's lines.
type rewriter struct {
	port      uint16       // instead of 53
	upstreams []netip.Addr // instead of /etc/resolv.conf
	dir       string       // instead of /etc/coredns
}

// token is one word of a Corefile. Words with the same line number belong together.
type token struct {
	line int
	text string
}

// corefile rewrites a Corefile or a *.server file, which consists of server blocks.
func (r rewriter) corefile(name, text string) (string, error) { return r.rewrite(name, text, 0) }

// override rewrites a *.override file, which holds the content of a server block.
func (r rewriter) override(name, text string) (string, error) { return r.rewrite(name, text, 1) }

func (r rewriter) rewrite(name, text string, depth int) (string, error) {
	var out writer
	lines := splitLines(name, text)
	for i, line := range lines {
		opens := line[len(line)-1].text == "{"
		if err := r.confine(name, line); err != nil {
			return "", err
		}
		switch {
		case line[0].text == "}":
			depth--
		case line[0].text == "import":
			if err := checkImport(name, line); err != nil {
				return "", err
			}
			if len(line) > 1 {
				line[1].text = strings.Replace(line[1].text, customDirOther, customDir, 1)
			}
		case depth == 0:
			if !opens && !strings.HasSuffix(line[len(line)-1].text, ",") {
				return "", fmt.Errorf("%s:%d - a server block needs its directives in braces: %s {", name, line[0].line, line[0].text)
			}
			switch {
			case strings.HasPrefix(line[0].text, "("): // a snippet has no address
			case !binds(lines[i:]):
				line = r.keys(line, opens)
			case opens:
				line = append(line, token{line[0].line, directiveBound})
			}
		case depth == 1:
			line = r.directive(line)
		}
		if opens {
			depth++
		}
		if depth < 0 {
			return "", fmt.Errorf("%s:%d - a closing brace without an opening one", name, line[0].line)
		}
		out.line(line)
	}
	return out.String(), nil
}

// keys moves a block's zones from port 53 to the rewriter's port. If the line opens the block, it
// also makes the block listen on mote's address.
func (r rewriter) keys(line []token, opens bool) []token {
	ours := ":" + strconv.Itoa(int(r.port))
	for i, t := range line {
		zone, comma := strings.CutSuffix(t.text, ",")
		transport, name := parse.Transport(zone)
		if t.text == "{" || transport != "dns" {
			continue // another transport has its own port
		}
		switch _, port, err := plugin.SplitHostPort(name); {
		case err != nil:
			continue // CoreDNS reports the error
		case port == "":
			zone += ours
		case port == "53":
			zone = strings.TrimSuffix(zone, ":53") + ours
		}
		if comma {
			zone += ","
		}
		line[i].text = zone
	}
	if opens {
		line = append(line, token{line[0].line, directiveListen})
	}
	return line
}

// binds reports whether the first block in lines sets its own addresses. Then the ports that it
// names are meant as well.
func binds(lines [][]token) bool {
	depth := 0
	for _, line := range lines {
		switch last := line[len(line)-1].text; {
		case line[0].text == "}":
			if depth--; depth <= 0 {
				return false
			}
		case depth == 1 && line[0].text == "bind":
			return true
		case last == "{":
			depth++
		}
	}
	return false
}

// directive renames a directive if needed, and replaces the resolver file by the upstream servers.
// Without upstream servers, a directive that knows no other server replaces the whole line.
func (r rewriter) directive(line []token) []token {
	if line[0].text == "hosts" && (len(line) == 1 || line[1].text == "{") {
		line = slices.Insert(line, 1, token{line[0].line, filepath.Join(r.dir, emptyHosts)})
	}
	if line[0].text != "forward" {
		line[0].text = renamed(line[0].text)
		return line
	}
	var out []token
	for _, t := range line {
		if t.text != "/etc/resolv.conf" {
			out = append(out, t)
			continue
		}
		for _, addr := range r.upstreams {
			out = append(out, token{t.line, addr.String()})
		}
	}
	servers := len(out) - len([]string{"forward", "zone"})
	if out[len(out)-1].text == "{" {
		servers--
	}
	if servers <= 0 && len(out) < len(line) {
		out[0].text = directiveUnreachable
	}
	return out
}

// checkImport prevents a Corefile from reading files of the machine.
func checkImport(name string, line []token) error {
	if len(line) == 1 {
		return nil // upstream reports the error
	}
	if dir := path.Dir(line[1].text); dir != "." && dir != customDir && dir != customDirOther {
		return fmt.Errorf("%s:%d - cannot import %s: only snippets, %s/*.override and %s/*.server can be; they are keys of the ConfigMap %s",
			name, line[1].line, line[1].text, customDir, customDir, customName)
	}
	return nil
}

// splitLines splits text into the words of each line and skips empty lines. The words after an
// opening brace count as a line of their own.
func splitLines(name, text string) [][]token {
	var lines [][]token
	d := caddyfile.NewDispenser(name, strings.NewReader(text))
	end := 0 // the line on which the last word ends; a quoted word may contain line breaks
	for d.Next() {
		t := token{d.Line(), d.Val()}
		if t.line != end {
			lines = append(lines, nil)
		}
		last := &lines[len(lines)-1]
		*last = append(*last, t)
		end = t.line + strings.Count(t.text, "\n")
		if t.text == "{" {
			end = 0
		}
	}
	return lines
}

// writer writes words so that they are read back unchanged, each on its line.
type writer struct {
	strings.Builder
	at int // the current line, from 0
}

func (w *writer) line(tokens []token) {
	for w.at+1 < tokens[0].line {
		w.WriteByte('\n')
		w.at++
	}
	for i, t := range tokens {
		if i > 0 {
			w.WriteByte(' ')
		}
		w.WriteString(quoted(t.text))
		w.at += strings.Count(t.text, "\n")
	}
	w.WriteByte('\n')
	w.at++
}

func quoted(text string) string {
	special := func(r rune) bool { return unicode.IsSpace(r) || r == '"' || r == '#' }
	if text != "" && strings.IndexFunc(text, special) < 0 {
		return text
	}
	return `"` + strings.ReplaceAll(text, `"`, `\"`) + `"`
}
