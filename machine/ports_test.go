package machine

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/internal/host"
	"github.com/mote-k8s/mote/machine/settings"
)

func TestPortOwnerIsFound(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			l, err := net.Listen("tcp", address)
			if err != nil {
				t.Skip("no such address here: ", err)
			}
			defer l.Close()
			addr := netip.MustParseAddrPort(l.Addr().String())
			listeners, err := host.Sockets()
			require.NoError(t, err)
			comm, err := os.ReadFile("/proc/self/comm")
			require.NoError(t, err)
			require.EqualError(t, checkPort(portUse{addr: addr, setting: "--x"}, listeners),
				fmt.Sprintf("cannot listen on %s: in use by pid %d (%s); stop it or set --x", addr, os.Getpid(), comm[:len(comm)-1]))

			require.NoError(t, l.Close())
			listeners, err = host.Sockets()
			require.NoError(t, err)
			require.NoError(t, checkPort(portUse{addr: addr}, listeners))
		})
	}
}

func TestCollide(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1:80", "127.0.0.1:80", true},
		{"127.0.0.1:80", "127.0.0.1:81", false},
		{"127.0.0.1:80", "10.0.0.1:80", false},
		{"127.0.0.1:80", "0.0.0.0:80", true},
		{"10.0.0.1:80", "[::]:80", true},
		{"127.0.0.1:80", "[::ffff:127.0.0.1]:80", true},
		{"127.0.0.1:80", "[::1]:80", false},
	} {
		a, b := netip.MustParseAddrPort(tt.a), netip.MustParseAddrPort(tt.b)
		require.Equal(t, tt.want, collide(a, b), "%s and %s", a, b)
		require.Equal(t, tt.want, collide(b, a), "%s and %s", b, a)
	}
}

func TestPortsFollowTheArguments(t *testing.T) {
	s := New(&settings.Settings{
		HTTPSListenAddress: netip.MustParseAddr("0.0.0.0"), HTTPSListenPort: 7443,
		ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"),
		KubeletArgs: []string{"healthz-port=1", "port=2"},
		ProxyArgs:   []string{"metrics-bind-address=127.0.0.2:3"},
	}, Env{})
	var got []string
	for _, p := range s.portsOf() {
		got = append(got, p.addr.String())
	}
	require.Equal(t, []string{
		"0.0.0.0:7443", "10.42.0.1:2", "127.0.0.1:1", "127.0.0.1:10257", "127.0.0.1:10259", "127.0.0.2:3", "10.42.0.1:10256",
		"10.42.0.1:10053", "10.42.0.1:10251",
	}, got)
}
