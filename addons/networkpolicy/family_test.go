package networkpolicy

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/addons/api"
)

// linkLocal gives a host of the lab an address that it may use at once, and returns the address.
func (l *lab) linkLocal(h *host, link string, n int) netip.Addr {
	address := netip.MustParseAddr(fmt.Sprintf("fe80::42:%d", n))
	l.in(h, func() {
		on, err := netlink.LinkByName(link)
		require.NoError(l.t, err)
		parsed, err := netlink.ParseAddr(address.String() + "/64")
		require.NoError(l.t, err)
		parsed.Flags = unix.IFA_F_NODAD
		require.NoError(l.t, netlink.AddrAdd(on, parsed))
	})
	return address
}

// TestOtherFamily checks that no policy can be bypassed over IPv6: every interface has a link-local
// IPv6 address.
func TestOtherFamily(t *testing.T) {
	for name, open := range map[string]func() (enforcer, error){
		"nftables": func() (enforcer, error) { return openNFTables() },
		"iptables": func() (enforcer, error) { return openIPTables(familyOf(netip.MustParseAddr(nodeIP))) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, false, "web", "client")
			web, client := l.hosts["web"], l.hosts["client"]
			webAddress, nodeAddress := l.linkLocal(web, "eth0", 1), l.linkLocal(l.node, bridge, 2)
			l.linkLocal(client, "eth0", 3)
			var rules enforcer
			l.in(l.node, func() {
				var err error
				rules, err = open()
				require.NoError(t, err)
			})
			dial := func(to netip.Addr, within time.Duration) (err error) {
				l.in(client, func() {
					link, lookup := netlink.LinkByName("eth0")
					require.NoError(t, lookup)
					// Use the number: the net package caches interface names across namespaces.
					err = echo("tcp", fmt.Sprintf("[%s%%%d]:80", to, link.Attrs().Index), 0, within)
				})
				return err
			}
			write := func(policies ...string) {
				l.in(l.node, func() { require.NoError(t, rules.write(t.Context(), compile(testCluster(policies...)))) })
			}
			for _, policies := range [][]string{nil, {denyAll}, {denyWeb}, nil} {
				write(policies...)
				for _, to := range []netip.Addr{webAddress, nodeAddress} {
					if policies == nil {
						require.NoError(t, dial(to, arrives))
					} else {
						require.Error(t, dial(to, refused), "%s with %v", to, policies)
					}
				}
			}
			testNextLife(t, l, open)
		})
	}
}

// TestRemoveWithoutIPv6 checks that the removal of a disabled addon, which happens at the start,
// does not wait for a program that never works.
func TestRemoveWithoutIPv6(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	// This is the output of ip6tables on a kernel without IPv6.
	broken := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(broken, "ip6tables"), []byte(`#!/bin/sh
if [ "$1" = --version ]; then echo "ip6tables v1.8.9 (legacy)"; exit; fi
echo "ip6tables v1.8.9 (legacy): can't initialize ip6tables table: Address family not supported by protocol" >&2
exit 3
`), 0o700))
	for name, path := range map[string]string{"switched off": os.Getenv("PATH"), "not in the kernel": broken + ":" + os.Getenv("PATH")} {
		t.Run(name, func(t *testing.T) {
			runtime.LockOSThread()
			require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
			set(t, "ipv6/conf/all/disable_ipv6", "1")
			set(t, "ipv6/conf/default/disable_ipv6", "1")
			rules, err := openIPTables(familyOf(netip.MustParseAddr(nodeIP)))
			require.NoError(t, err)
			require.NoError(t, rules.write(t.Context(), compile(testCluster(denyAll))))
			t.Setenv("PATH", path)
			ctx, cancel := context.WithTimeout(t.Context(), arrives)
			defer cancel()
			require.NoError(t, Remove(ctx, api.Access{}))
			printed, err := exec.Command("iptables", "-t", iptTable, "-S").CombinedOutput()
			require.NoError(t, err)
			require.NotContains(t, string(printed), iptPrefix)
			left, err := netlink.IpsetListAll()
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// TestOtherFamilyFails checks that policies are enforced in the pods' family even if the programs
// of the other family fail.
func TestOtherFamilyFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // the thread ends with the test
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	rules, err := openIPTables(familyOf(netip.MustParseAddr(nodeIP)))
	require.NoError(t, err)
	if rules.others == nil {
		t.Skip("needs a kernel with IPv6")
	}
	rules.others.restore = "false"
	require.Error(t, rules.write(t.Context(), compile(testCluster(denyAll))))
	printed, err := exec.Command("iptables", "-t", iptTable, "-S", "FORWARD").CombinedOutput()
	require.NoError(t, err)
	require.Contains(t, string(printed), iptPrefix)
}
