package dns

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coredns/coredns/plugin/pkg/parse"
	"github.com/coredns/coredns/plugin/pkg/transport"
)

// mountDir is the directory where CoreDNS' pods mount the ConfigMaps. The keys of coredns-custom
// are in its subdirectory custom.
const mountDir = "/etc/coredns"

// emptyHosts replaces /etc/hosts, which would be the machine's file. A pod has a file of its own,
// without names.
const emptyHosts = customDir + "/none.hosts"

// confine restricts the plugins of a line to the files that a pod of CoreDNS would see: the keys of
// the ConfigMaps coredns and coredns-custom. This matters because CoreDNS runs as root on the
// machine here, and users who may edit a ConfigMap are not root. Snippets can be imported into any
// block, so the first word alone decides.
func (r rewriter) confine(name string, line []token) error {
	for _, t := range line {
		if strings.Contains(t.text, "{$") || strings.Contains(t.text, "{%") {
			return fmt.Errorf("%s:%d - %s: a Corefile cannot use environment variables, which would be mote's", name, t.line, t.text)
		}
	}
	for _, i := range files(line) {
		allowed, ok := r.allowed(line[i].text)
		if !ok {
			return fmt.Errorf("%s:%d - %s cannot read %s: a Corefile may read keys of the ConfigMaps %s and %s, as %s/KEY and %s/%s/KEY",
				name, line[i].line, line[0].text, line[i].text, configName, customName, mountDir, mountDir, customDir)
		}
		line[i].text = allowed
	}
	return nil
}

// files returns the indexes of the words of a line that name files.
func files(line []token) []int {
	end := slices.IndexFunc(line, func(t token) bool { return t.text == "{" || t.text == "}" })
	if end < 0 {
		end = len(line)
	}
	var found []int
	upTo := func(first, last int) {
		for i := first; i < min(last, end); i++ {
			found = append(found, i)
		}
	}
	switch line[0].text {
	case "file", "hosts", "kubeconfig", "keylog":
		upTo(1, 2)
	case "tls":
		upTo(1, end)
	case "autopath": // the last word, unless it names a plugin
		if end > 1 && !strings.HasPrefix(line[end-1].text, "@") {
			upTo(end-1, end)
		}
	case "loadbalance":
		if end > 1 && line[1].text == "weighted" {
			upTo(2, 3)
		}
	case "forward":
		for i := 2; i < end; i++ {
			if !isServer(line[i].text) {
				found = append(found, i)
			}
		}
	}
	return found
}

// isServer reports whether a word after forward is the address or name of a server, which has no
// slash. Upstream treats other words as files. The machine's resolver file is accepted because its
// servers replace it.
func isServer(word string) bool {
	over, host := parse.Transport(word)
	return word == "/etc/resolv.conf" || over != transport.UNIX && !strings.Contains(host, "/")
}

// allowed returns the path on this machine for a file that a pod would see.
func (r rewriter) allowed(file string) (string, bool) {
	file = path.Clean(file)
	if path.IsAbs(file) {
		below, found := strings.CutPrefix(file, mountDir+"/")
		if !found {
			return "", false
		}
		file = below
	}
	key := strings.TrimPrefix(file, customDir+"/")
	if key == "." || key == ".." || strings.Contains(key, "/") {
		return "", false
	}
	return filepath.Join(r.dir, file), true
}
