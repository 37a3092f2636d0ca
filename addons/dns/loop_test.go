package dns

import (
	"context"
	"net"
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// serveHandler answers with h on a loopback port and returns its address.
func serveHandler(t *testing.T, h plugin.Handler) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		code, _ := h.ServeDNS(context.Background(), w, r)
		if code == dns.RcodeServerFailure {
			_ = w.WriteMsg(new(dns.Msg).SetRcode(r, code))
		}
	})}
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	go func() { _ = server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { _ = server.Shutdown() })
	return conn.LocalAddr().String()
}

func ask(t *testing.T, addr, name string, kind uint16) *dns.Msg {
	t.Helper()
	answer, err := dns.Exchange(new(dns.Msg).SetQuestion(name, kind), addr)
	require.NoError(t, err)
	return answer
}

func TestLoop(t *testing.T) {
	forwarded := plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		_ = w.WriteMsg(new(dns.Msg).SetReply(r))
		return dns.RcodeSuccess, nil
	})
	var said []string
	l := &loop{next: forwarded, zone: ".", name: "probe.", tell: func(m string) { said = append(said, m) }}
	l.addr = serveHandler(t, l)
	require.False(t, l.check(t.Context()), "nothing comes back")
	require.Equal(t, dns.RcodeSuccess, ask(t, l.addr, "a.test.", dns.TypeA).Rcode)

	// The server that is asked sends the query back.
	l.next = plugin.HandlerFunc(func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		return l.ServeDNS(ctx, w, r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan struct{})
	l.tell = func(m string) { said = append(said, m); cancel() }
	go func() { defer close(watched); l.watch(ctx) }()
	<-watched
	require.Len(t, said, 2)
	require.Contains(t, said[0], "ask the cluster again")
	require.Empty(t, said[1], "what ends has nothing to say")
	require.Equal(t, dns.RcodeServerFailure, ask(t, l.addr, "a.test.", dns.TypeA).Rcode)
}

func TestUnreachable(t *testing.T) {
	u := unreachable{zones: plugin.Zones{"test."}}
	w := &test.ResponseWriter{}
	code, err := u.ServeDNS(t.Context(), w, new(dns.Msg).SetQuestion("a.test.", dns.TypeA))
	require.NoError(t, err)
	require.Equal(t, dns.RcodeServerFailure, code)
}
