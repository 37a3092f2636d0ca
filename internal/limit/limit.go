// Package limit puts a budget in front of the TCP listeners that strangers can reach: pods, other
// machines, any client without credentials. All components share one process, so a stranger that
// uses up its descriptors or memory takes the whole cluster down. Over the budget a connection is
// reset at accept, before TLS or HTTP see it.
//
// Call New once for each process, and Budgets.Listen for each port. The listener is an ordinary
// net.Listener whose connections are *Conn. A connection counts until it is closed.
//
// There are two classes. A connection is "own" when it comes from this machine: its source is a
// loopback address or the address that it was made to. Own connections belong to components,
// kubectl and programs in the host network. They have a reserve (Config.Own) that strangers cannot
// use. All others are "stranger" and share Config.Connections. When those are used up, a source
// address that holds less than the one with the most replaces a connection of that one. So each of
// n sources gets an n-th part, whichever came first. The strangers of all listeners together hold
// at most half of the process's descriptors, those of one listener an eighth; the other half is for
// the datastore, containerd and the kubelet.
//
// A temporary error of accept, above all a shortage of descriptors, never ends a listener: it is
// counted, and accept is tried again after a pause.
//
// Budgets reports refusals: Trouble for "mote status", one log line a minute for each listener, and
// metrics (mote_listener_connections, mote_listener_refused_total). All exported methods are safe
// for concurrent use.
package limit

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Config is the budget of one listener.
type Config struct {
	// Component is the name of the component that listens, as in "mote status".
	Component string
	// Name is the listener's name in metrics and the log, e.g. "kube-apiserver" or "ingress-http".
	Name string
	// Connections limits the strangers' connections at once. PerAddress limits those of one source
	// address: an IPv4 address or an IPv6 /64. With 0, only Connections limits them.
	Connections, PerAddress int
	// Own limits the connections at once from this machine.
	Own int
	// Start is the time within which a client must send its first byte; 0 means no limit. With TLS
	// it is the time until the first record of application data, which comes after the handshake.
	Start time.Duration
	TLS   bool
	// Unacknowledged is TCP_USER_TIMEOUT: how long sent data may wait for the client's
	// acknowledgement; 0 keeps the kernel's default. It also ends connections of clients that do
	// not read, such as a paused "kubectl logs -f".
	Unacknowledged time.Duration
	// OwnSocket gives connections to loopback (127.0.0.1, or ::1 for [::]) a socket of their own,
	// and with it an accept queue of their own, where the address is the unspecified one. A queue
	// that strangers have filled then does not delay the machine's own clients.
	OwnSocket bool
}

// Reason is why a connection was refused or ended. It is a label of mote_listener_refused_total.
type Reason string

// Reasons.
const (
	// Full means that a budget is used up: Connections, or Own for connections of this machine.
	Full Reason = "full"
	// Address means that the source address already holds PerAddress connections.
	Address Reason = "address"
	// Share means that the connection was ended in favour of a source address that holds less.
	Share Reason = "share"
	// Descriptors means that all listeners together have used up the strangers' half of the
	// process's descriptors.
	Descriptors Reason = "descriptors"
	// Silent means that the client did not send in time (Config.Start).
	Silent Reason = "silent"
	// Failed means that accept failed; each attempt counts.
	Failed Reason = "accept-failed"
)

// reasons returns all reasons in the order of metrics and Trouble.
func reasons() []Reason { return []Reason{Full, Address, Share, Descriptors, Silent, Failed} }

// Budgets holds all listeners of a process. The nil value works: its listeners are limited, only
// not reported.
type Budgets struct {
	strangers    atomic.Int64 // connections of strangers to all listeners
	maxStrangers int64

	mu        sync.Mutex // guards listeners
	listeners []*Listener
}

// New returns the budgets of this process, based on its present limit of open files.
func New() *Budgets {
	return &Budgets{maxStrangers: int64(MaxDescriptors() / 2)}
}

// Recommended is the limit of open files below which the strangers' share is small for a machine
// with many clients.
const Recommended = 65_536

// raisedLimit is the usual limit from a service manager (units/mote.service), and below the
// kernel's default maximum fs.nr_open.
const raisedLimit = 1 << 20

// RaiseDescriptors raises the process's limit of open files as far as it may, and returns it. Go
// has raised the soft limit to the hard one already; raising the hard one needs CAP_SYS_RESOURCE.
func RaiseDescriptors() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil && limit.Cur < raisedLimit {
		raised := unix.Rlimit{Cur: raisedLimit, Max: max(limit.Max, raisedLimit)}
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) // not permitted: the limit stays
	}
	return MaxDescriptors()
}

// MaxDescriptors returns the process' limit of open files.
func MaxDescriptors() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 1024 // POSIX systems have at least a limit of this order
	}
	return int(min(limit.Cur, 1<<30))
}

// most returns the largest budget that one listener may have, so that its strangers leave room for
// those of other listeners.
func (b *Budgets) most() int {
	if b == nil {
		return math.MaxInt
	}
	return int(b.maxStrangers / 4)
}

// take counts one more connection of a stranger, unless strangers have used up their share.
func (b *Budgets) take() bool {
	if b == nil {
		return true
	}
	if b.strangers.Add(1) > b.maxStrangers {
		b.strangers.Add(-1)
		return false
	}
	return true
}

func (b *Budgets) give() {
	if b != nil {
		b.strangers.Add(-1)
	}
}

func (b *Budgets) add(l *Listener) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.listeners = append(b.listeners, l)
}

func (b *Budgets) remove(l *Listener) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.listeners = slices.DeleteFunc(b.listeners, func(other *Listener) bool { return other == l })
}

func (b *Budgets) all() []*Listener {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.listeners)
}

// EndFrom resets the connections from sources that no longer exist, such as the addresses of
// removed pods, and returns their number. A client without a network cannot close its connections,
// and the kernel keeps unacknowledged data for a quarter of an hour.
func (b *Budgets) EndFrom(sources map[netip.Addr]bool) int {
	ended := 0
	for _, l := range b.all() {
		for _, c := range l.from(sources) {
			c.reset()
			ended++
		}
	}
	return ended
}

// Trouble describes the refusals of a component's listeners in the last minutes, one line each, for
// component.Status.
func (b *Budgets) Trouble(componentName string) []string {
	var out []string
	for _, l := range b.all() {
		if l.cfg.Component != componentName {
			continue
		}
		if text := l.journal.trouble(time.Now()); text != "" {
			out = append(out, fmt.Sprintf("%s: %s", l.Addr(), text))
		}
	}
	return out
}
