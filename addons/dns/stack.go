package dns

import "github.com/miekg/dns"

// stackNeeded makes the smallest stack, of 2 KiB, grow to 16 KiB at once. A query for a Service
// needs more than 8 KiB.
const stackNeeded = 9 << 10

// accept applies the library's rule for the queries to answer. It also grows the stack of the
// query's goroutine while the stack is still shallow: before the question is unpacked. Each UDP
// query has its own goroutine. The runtime doubles a full stack and copies its contents. It did so
// three times on the way through the plugins, which took a fifth of the server's processor time.
func accept(h dns.Header) dns.MsgAcceptAction {
	growStack(int(h.Qdcount))
	return dns.DefaultMsgAcceptFunc(h)
}

// growStack returns a value that the compiler cannot know, so that the compiler keeps the array on
// the stack.
//
//go:noinline
func growStack(n int) byte {
	var room [stackNeeded]byte
	return room[n%stackNeeded]
}
