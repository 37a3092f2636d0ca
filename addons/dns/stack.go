package dns

import "github.com/miekg/dns"

// stackNeeded takes the smallest stack, of 2 KiB, to 16 at once. A query for a Service needs more than 8.
const stackNeeded = 9 << 10

// accept is the library's choice of queries to answer, and grows the stack of a query's goroutine while it is still
// shallow: before the question is unpacked. Each query over UDP has a goroutine of its own, and the runtime, which
// doubles a stack when it is full and copies its contents, did so three times on the way through the plugins: a fifth
// of the server's processor time.
func accept(h dns.Header) dns.MsgAcceptAction {
	growStack(int(h.Qdcount))
	return dns.DefaultMsgAcceptFunc(h)
}

// growStack returns what the compiler cannot know, so that it makes the room.
//
//go:noinline
func growStack(n int) byte {
	var room [stackNeeded]byte
	return room[n%stackNeeded]
}
