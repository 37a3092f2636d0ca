// Package host reads the state of this machine that several parts of mote need: sockets and the
// processes that hold them. It knows the kernel's interfaces and nothing of Kubernetes.
package host

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Socket is a TCP socket that waits for connections, or a UDP socket without a peer.
type Socket struct {
	// Addr is its local address. It is an IPv4 address for a socket of IPv6 that is bound to one.
	Addr netip.AddrPort
	UDP  bool

	inode string
}

// socketTables are the files of proc(5) with the state of a socket that waits for others. Files of
// IPv6 are missing on kernels without it.
func socketTables() []struct {
	name, state string
	udp         bool
} {
	return []struct {
		name, state string
		udp         bool
	}{{"tcp", "0A", false}, {"tcp6", "0A", false}, {"udp", "07", true}, {"udp6", "07", true}}
}

// Sockets lists the waiting sockets in the network namespace of the calling thread.
func Sockets() ([]Socket, error) {
	var sockets []Socket
	for _, table := range socketTables() {
		found, err := readSockets("/proc/thread-self/net/"+table.name, table.state)
		if err != nil {
			return nil, fmt.Errorf("list open ports: %w", err)
		}
		for _, s := range found {
			s.UDP = table.udp
			sockets = append(sockets, s)
		}
	}
	return sockets, nil
}

// readSockets reads the sockets in a state from a table such as /proc/net/tcp.
func readSockets(path, state string) ([]Socket, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var sockets []Socket
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// "  0: 0100007F:1F90 00000000:0000 0A ... inode"
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != state {
			continue
		}
		addr, err := parseSocket(fields[1])
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		sockets = append(sockets, Socket{Addr: addr, inode: fields[9]})
	}
	return sockets, lines.Err()
}

// parseSocket parses ADDRESS:PORT in hexadecimal. The address consists of 32-bit words in the byte
// order of the machine, which is little-endian on every machine that mote runs on.
func parseSocket(text string) (netip.AddrPort, error) {
	address, portText, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(address)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address", text)
	}
	for word := range slices.Chunk(raw, 4) {
		slices.Reverse(word)
	}
	addr, ok := netip.AddrFromSlice(raw)
	port, err := strconv.ParseUint(portText, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address", text)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}

// Owner names the process that holds the socket: "pid 812 (nginx)", or "another process" if it
// cannot be found.
func (s Socket) Owner() string {
	const unknown = "another process"
	want := "socket:[" + s.inode + "]"
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return unknown
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err != nil || link != want {
			continue // processes end meanwhile
		}
		pid := strings.Split(fd, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			return "pid " + pid
		}
		return fmt.Sprintf("pid %s (%s)", pid, strings.TrimSpace(string(name)))
	}
	return unknown
}
