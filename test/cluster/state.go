package cluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stateScript prints one line for each thing that a program can leave behind on a host. It lists
// the files that the overlay has changed and those in directories that are file systems of their
// own, without the test's own directory, $1. It leaves out ip_forward: once it is on, other
// programs may rely on it.
const stateScript = `
cd /.changes && find . -type d ! -path './root/.kube*' | while read -r d; do
	[ -d "/.machine/$d" ] || echo "folder $d"
done
cd / && find /.changes ! -type d ! -type s ! -path '/.changes/root/.kube/*' -printf 'file %p %M %s %l\n'
find /run /tmp /var/lib/mote -mindepth 1 ! -type s ! -path "$1/*" ! -path "$1" -printf 'file %p %M %l\n'
find /run /tmp /var/lib/mote /var/lib/kubelet /.changes -type s -printf 'socket %p\n' 2>/dev/null
awk '{ print "mount", $5, $(NF-2), $(NF-1) }' /proc/self/mountinfo
ip -o link | awk '{ print "link", $2 }'
ip route | sed 's/^/route /'
ip -o addr | awk '{ print "address", $2, $4 }'
nft list ruleset | sed 's/^/nft /; s/counter packets.*//'
find /sys/fs/cgroup -mindepth 2 -type d -printf 'cgroup %p\n' 2>/dev/null
ip netns list | sed 's/^/netns /'
sysctl -a 2>/dev/null | grep -e bridge-nf -e '^net.ipv4.conf.all.route_localnet' -e '^vm.overcommit' -e '^kernel.panic' | sed 's/^/sysctl /'
# Named before the loop's own processes are there, whose script echo would make NULs of, which ends what grep shows.
set -- /proc/[0-9]*
for p; do
	[ "$p" = /proc/$$ ] || { c=$(cat $p/cmdline 2>/dev/null | tr '\0\n' '  ') && [ -n "$c" ] && printf 'process %s\n' "$c"; }
done | grep -a -v '^process /.reaper'
true
`

// State lists the contents of the host: files that differ from the machine's, mounts, links,
// addresses, routes, packet rules with their ipsets, cgroups and processes, one a line, sorted.
func (h *Host) State(t testing.TB) []string {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(h.Run(t, "sh", "-c", stateScript, "sh", h.Dir)), "\n")
	for _, set := range h.Ipsets(t) {
		lines = append(lines, "ipset "+set)
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// Ipsets returns the names of the address sets that rules of iptables can refer to. It needs no
// program for them.
func (h *Host) Ipsets(t testing.TB) (names []string) {
	t.Helper()
	err := h.within(unix.CLONE_NEWNET, func() error {
		sets, err := netlink.IpsetListAll()
		for _, set := range sets {
			names = append(names, set.SetName)
		}
		return err
	})
	if err != nil {
		t.Fatalf("list ipsets: %v", err)
	}
	return names
}

// Diff lists the lines that only after has (+) and those that only before has (-).
func Diff(before, after []string) string {
	var b strings.Builder
	for _, line := range after {
		if _, found := slices.BinarySearch(before, line); !found {
			fmt.Fprintln(&b, "+", line)
		}
	}
	for _, line := range before {
		if _, found := slices.BinarySearch(after, line); !found {
			fmt.Fprintln(&b, "-", line)
		}
	}
	return b.String()
}
