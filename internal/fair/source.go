package fair

import (
	"net"
	"net/netip"
)

// Source returns the address that a connection from remote to local counts for: that of an IPv4
// client, the /64 network of an IPv6 client, which usually has the whole network, and the zero
// address for this machine's own programs.
func Source(remote, local net.Addr) netip.Addr {
	from := address(remote)
	switch {
	case from.IsLoopback() || from == address(local):
		return netip.Addr{}
	case from.Is6():
		network, _ := from.WithZone("").Prefix(64)
		return network.Addr()
	}
	return from
}

func address(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	case nil:
		return netip.Addr{}
	}
	parsed, _ := netip.ParseAddrPort(a.String())
	return parsed.Addr().Unmap()
}
