package settings

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/mote-k8s/mote/datastore/snapshot"
)

// value is the field of one setting, which can be set from text.
type value struct {
	kind    string // kind of the text, in one word, for the help
	list    bool
	choices []string
	set     func(string) error // appends to a list
	clear   func()
}

func scalar[T any](p *T, kind string, parse func(string) (T, error)) value {
	return value{
		kind: kind,
		set: func(text string) error {
			v, err := parse(text)
			if err == nil {
				*p = v
			}
			return err
		},
		clear: func() { *p = *new(T) },
	}
}

func list(p *[]string, kind string, parse func(string) (string, error)) value {
	return value{
		kind: kind,
		list: true,
		set: func(text string) error {
			v, err := parse(text)
			if err == nil {
				*p = append(*p, v)
			}
			return err
		},
		clear: func() { *p = nil },
	}
}

func choice(p *string, choices ...string) value {
	v := scalar(p, "choice", func(text string) (string, error) {
		if !slices.Contains(choices, text) {
			return "", fmt.Errorf("%q is not one of %s", text, strings.Join(choices, ", "))
		}
		return text, nil
	})
	v.choices = choices
	return v
}

// choices returns the value of a list whose items must be in of. Commas separate several items, as
// no item contains one.
func choices(p *[]string, of ...string) value {
	v := list(p, "name", nil)
	v.set = func(text string) error {
		for name := range strings.SplitSeq(text, ",") {
			if !slices.Contains(of, name) {
				return fmt.Errorf("%q is not one of %s", name, strings.Join(of, ", "))
			}
			*p = append(*p, name)
		}
		return nil
	}
	v.choices = of
	return v
}

// anyText accepts every text. The component that uses the setting validates it: an error here would
// repeat a text that may be a password.
func anyText(text string) (string, error) { return text, nil }

func absolutePath(text string) (string, error) {
	if !filepath.IsAbs(text) {
		return "", fmt.Errorf("%q is not an absolute path", text)
	}
	return filepath.Clean(text), nil
}

// auditPolicy accepts off, default or the path of a file.
func auditPolicy(text string) (string, error) {
	if text == "off" || text == "default" {
		return text, nil
	}
	if !filepath.IsAbs(text) {
		return "", fmt.Errorf("%q is not off, default or an absolute path", text)
	}
	return filepath.Clean(text), nil
}

func port(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port (1 to 65535)", text)
	}
	return int(n), nil
}

// schedule parses cron's syntax; off yields nil.
func schedule(text string) (cron.Schedule, error) {
	if text == "off" {
		return nil, nil
	}
	s, err := cron.ParseStandard(text)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%q is not a schedule such as \"0 */12 * * *\" or \"@every 6h\": %w", text, err)
	case s.Next(time.Now()).IsZero():
		return nil, fmt.Errorf("%q is a time that never comes; off switches it off", text)
	}
	return s, nil
}

// size parses a number of bytes in Kubernetes' notation.
func size(text string) (int64, error) {
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Value() <= 0 {
		return 0, fmt.Errorf("%q is not a size such as 500Mi or 8Gi", text)
	}
	return q.Value(), nil
}

func positive(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a number from 1", text)
	}
	return int(n), nil
}

func address(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return a, fmt.Errorf("%q is not an IP address", text)
	}
	return a, nil
}

func network(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is not a network such as 10.42.0.0/16", text)
	case !p.Addr().Is4():
		return p, fmt.Errorf("%q is not an IPv4 network", text)
	case p != p.Masked():
		return p, fmt.Errorf("%q has address bits beyond its length; %s would not", text, p.Masked())
	}
	return p, nil
}

// contextName accepts names that need no quotes after kubectl's --context.
func contextName(text string) (string, error) {
	if !regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.@:/]*$`).MatchString(text) {
		return "", fmt.Errorf("%q cannot name a cluster: it begins with a letter or digit, and only letters, digits and -_.@:/ follow", text)
	}
	return text, nil
}

// proxyURL parses the URL of a proxy. Its errors do not repeat the text, which may contain a
// password.
func proxyURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		return "", errors.New("is not the URL of a proxy such as http://192.0.2.1:3128")
	}
	return text, nil
}

// proxyException accepts one item of NO_PROXY.
func proxyException(text string) (string, error) {
	if text == "" || strings.ContainsAny(text, ", \t") {
		return "", fmt.Errorf("%q is not one name, address or network", text)
	}
	return text, nil
}

func hostOrAddress(text string) (string, error) {
	if _, err := netip.ParseAddr(text); err == nil {
		return text, nil
	}
	if _, err := domain(strings.TrimPrefix(text, "*.")); err != nil {
		return "", fmt.Errorf("%q is neither a DNS name nor an IP address", text)
	}
	return text, nil
}

func domain(text string) (string, error) {
	// RFC 1123 names in lower case, as Kubernetes requires.
	ok := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`).MatchString(text)
	if !ok || len(text) > 253 {
		return "", fmt.Errorf("%q is not a DNS name in lower case", text)
	}
	return text, nil
}

// maxNodeName is the longest value of a label: a node's name is the value of its label
// kubernetes.io/hostname.
const maxNodeName = 63

// ParseNodeName returns text if it is a valid name of a node.
func ParseNodeName(text string) (string, error) {
	if len(text) > maxNodeName {
		return "", fmt.Errorf("%q cannot name a node: it has %d characters, and a label's value, which it becomes, has at most %d", text, len(text), maxNodeName)
	}
	if _, err := domain(text); err != nil {
		return "", fmt.Errorf("%q cannot name a node: only a-z, 0-9, - and . are allowed, and it begins and ends with a letter or digit", text)
	}
	return text, nil
}

func nodeLabel(text string) (string, error) {
	name, _, ok := strings.Cut(text, "=")
	if !ok || name == "" || strings.Contains(text, ",") {
		return "", fmt.Errorf("%q is not a label, name=value (one for each --node-label)", text)
	}
	return text, nil
}

func nodeTaint(text string) (string, error) {
	name, effect, ok := cutLast(text, ":")
	if !ok || name == "" || !slices.Contains([]string{"NoSchedule", "PreferNoSchedule", "NoExecute"}, effect) {
		return "", fmt.Errorf("%q is not a taint, name=value:effect (NoSchedule, PreferNoSchedule or NoExecute)", text)
	}
	return text, nil
}

func cutLast(text, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(text, sep); i >= 0 {
		return text[:i], text[i+len(sep):], true
	}
	return text, "", false
}

func recipient(text string) (string, error) { return text, snapshot.CheckRecipient(text) }

// argument also accepts --name=value, because people copy that from upstream's documentation.
func argument(text string) (string, error) {
	arg := strings.TrimPrefix(text, "--")
	name, _, ok := strings.Cut(arg, "=")
	if !ok || name == "" || strings.ContainsAny(name, " \t") {
		return "", fmt.Errorf("%q is not an argument, name=value", text)
	}
	return arg, nil
}

// Nearest returns the known word that is closest to word, or "" when none is close enough.
func Nearest(word string, known []string) string {
	best, bestDistance := "", len(word)/3+1
	for _, k := range known {
		if d := distance(word, k); d <= bestDistance && (best == "" || d < bestDistance) {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance returns the Levenshtein distance: the number of letters that must be added, removed or
// changed.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
