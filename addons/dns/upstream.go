package dns

import (
	"bytes"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// maxUpstreams is the maximum that CoreDNS' forward plugin accepts.
const maxUpstreams = 15

// upstreams returns the name servers of the first file that names any server except ours. A query
// to ours would be a loop. A file that cannot be read counts as empty, as on a machine without a
// resolver.
func upstreams(files []string, ours ...netip.Addr) []netip.Addr {
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if servers := nameServers(content, ours); len(servers) > 0 {
			return servers[:min(len(servers), maxUpstreams)]
		}
	}
	return nil
}

func nameServers(resolvConf []byte, ours []netip.Addr) []netip.Addr {
	var servers []netip.Addr
	for line := range bytes.Lines(resolvConf) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		if err == nil && !slices.Contains(ours, addr) && !slices.Contains(servers, addr) {
			servers = append(servers, addr)
		}
	}
	return servers
}
