package host

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSockets(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm")
	require.NoError(t, err)
	owner := fmt.Sprintf("pid %d (%s)", os.Getpid(), strings.TrimSpace(string(comm)))
	find := func(addr netip.AddrPort, udp bool) *Socket {
		sockets, err := Sockets()
		require.NoError(t, err)
		i := slices.IndexFunc(sockets, func(s Socket) bool { return s.Addr == addr && s.UDP == udp })
		if i < 0 {
			return nil
		}
		return &sockets[i]
	}
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"} {
		t.Run(address, func(t *testing.T) {
			tcp, err := net.Listen("tcp", address)
			if err != nil {
				t.Skip("no such address here: ", err)
			}
			defer tcp.Close()
			udp, err := net.ListenPacket("udp", address)
			require.NoError(t, err)
			defer udp.Close()
			for _, s := range []struct {
				addr net.Addr
				udp  bool
			}{{tcp.Addr(), false}, {udp.LocalAddr(), true}} {
				found := find(netip.MustParseAddrPort(s.addr.String()), s.udp)
				require.NotNil(t, found, s.addr)
				require.Equal(t, owner, found.Owner())
			}
			require.NoError(t, tcp.Close())
			require.Nil(t, find(netip.MustParseAddrPort(tcp.Addr().String()), false))
		})
	}
	require.Equal(t, "another process", Socket{inode: "none"}.Owner())
}

func TestParseSocket(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000:0016":                         "0.0.0.0:22",
		"00000000000000000000000001000000:0050": "[::1]:80",
		"00000000000000000000000000000000:0050": "[::]:80",
		"0000000000000000FFFF00000100007F:0050": "127.0.0.1:80",
	} {
		got, err := parseSocket(text)
		require.NoError(t, err)
		require.Equal(t, want, got.String())
	}
	for _, bad := range []string{"", "01:50", "0100:1", "01:", "0100007F", "0100007F:x"} {
		_, err := parseSocket(bad)
		require.Error(t, err, bad)
	}
}
