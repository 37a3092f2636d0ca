package limit

import (
	"net"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// peers puts this thread into a network namespace of its own with address 192.0.2.1, and creates
// another namespace beside it with 192.0.2.2 and 192.0.2.3. The thread ends with the test.
func peers(t *testing.T) (dialFrom func(source, address string) (net.Conn, error)) {
	t.Helper()
	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	there := -1
	inThread(t, func() {
		require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
		var err error
		there, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
	})
	t.Cleanup(func() { unix.Close(there) })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "here"
	require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "there", PeerNamespace: netlink.NsFd(there)}))
	up(t, "lo")
	up(t, "here", "192.0.2.1/24")
	in := func(f func()) {
		inThread(t, func() {
			require.NoError(t, unix.Setns(there, unix.CLONE_NEWNET))
			f()
		})
	}
	in(func() { up(t, "there", "192.0.2.2/24", "192.0.2.3/24") })
	return func(source, address string) (conn net.Conn, err error) {
		in(func() {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: wait}
			conn, err = dialer.Dial("tcp", address)
		})
		return conn, err
	}
}

// inThread calls f on a thread that ends when f returns. A failed requirement in f still ends the
// test.
func inThread(t *testing.T, f func()) {
	t.Helper()
	done := make(chan bool)
	go func() {
		finished := false
		defer func() { done <- finished }()
		runtime.LockOSThread()
		f()
		finished = true
	}()
	if !<-done {
		t.FailNow()
	}
}

func up(t *testing.T, name string, addresses ...string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	require.NoError(t, err)
	for _, address := range addresses {
		parsed, err := netlink.ParseAddr(address)
		require.NoError(t, err)
		require.NoError(t, netlink.AddrAdd(link, parsed))
	}
	require.NoError(t, netlink.LinkSetUp(link))
}
