package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// resolvSources returns the host's resolver files, best first. systemd-resolved writes its own
// loopback address into the first and the true servers into the second.
func resolvSources() []string {
	return []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}
}

// podResolvConf returns the resolver file for pods that use the host's. It is the first source with
// a name server that a pod can reach. If none has one, it is the other lines of the first source,
// or a comment. A name server on the host's loopback means nothing inside a pod.
func podResolvConf(sources ...[]byte) []byte {
	var fallback []byte
	for _, source := range sources {
		content, servers := withoutLoopback(source)
		if servers > 0 {
			return content
		}
		if fallback == nil && len(source) > 0 {
			fallback = content
		}
	}
	if fallback == nil {
		fallback = []byte("# the host has no name server\n")
	}
	return fallback
}

// withoutLoopback drops the name servers on loopback and counts the others.
func withoutLoopback(source []byte) (content []byte, servers int) {
	for line := range bytes.Lines(source) {
		fields := strings.Fields(string(line))
		if len(fields) >= 2 && fields[0] == "nameserver" {
			addr, err := netip.ParseAddr(fields[1])
			if err != nil || addr.IsLoopback() || addr.IsUnspecified() {
				continue
			}
			servers++
		}
		content = append(content, line...)
	}
	return content, servers
}

func writeResolvConf(c Config) error {
	var sources [][]byte
	for _, path := range resolvSources() {
		source, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read the host's resolver configuration: %w", err)
		}
		sources = append(sources, source)
	}
	content := podResolvConf(sources...)
	if old, err := os.ReadFile(c.data().ResolvConf()); err == nil && bytes.Equal(old, content) {
		return nil
	}
	return writeFile(c.data().ResolvConf(), content, 0o644)
}
