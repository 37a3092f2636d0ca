package dns

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/addons/api"
)

// benchSockets is the number of sockets in the load of BenchmarkQuery. benchWindow is the number of
// queries that are open on each.
const benchSockets, benchWindow = 8, 8

// BenchmarkQuery measures the processor time of a query for a Service's name, over UDP and through
// the whole default Corefile. The time includes the shares of the kernel and of the load. It
// listens on port 10053 of loopback.
func BenchmarkQuery(b *testing.B) {
	apiserver := httptest.NewServer(http.HandlerFunc(serveAPI))
	b.Cleanup(apiserver.Close)
	address := netip.MustParseAddr("127.0.0.1")
	s, err := New(Config{
		Access: api.Access{Server: apiserver.URL}, Address: address, ClusterIP: address, Domain: "cluster.local", RunDir: b.TempDir(),
	})
	require.NoError(b, err)
	require.NoError(b, s.start(sources{corefile: s.cfg.defaultCorefile()}))
	b.Cleanup(s.stop)
	b.Cleanup(apiserver.CloseClientConnections)
	target := fmt.Sprintf("%s:%d", address, Port)
	query, err := new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA).Pack()
	require.NoError(b, err)
	require.Eventually(b, func() bool {
		answer, err := dns.Exchange(new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA), target)
		return err == nil && len(answer.Answer) == 1
	}, 10*time.Second, 10*time.Millisecond)

	b.Run("service", func(b *testing.B) { benchmarkQueries(b, target, query) })
}

// benchmarkQueries is a separate benchmark because there is one server for each process, and a
// benchmark is repeated until it takes long enough.
func benchmarkQueries(b *testing.B, target string, query []byte) {
	var before, after unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &before))
	b.ResetTimer()
	var asking sync.WaitGroup
	for range benchSockets {
		asking.Go(func() {
			if err := askMany(target, query, b.N/benchSockets+1); err != nil {
				b.Error(err)
			}
		})
	}
	asking.Wait()
	b.StopTimer()
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &after))
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
	b.ReportAllocs()
}

// askMany asks n times and keeps a window of queries open.
func askMany(address string, query []byte, n int) error {
	conn, err := net.Dial("udp4", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	packets := ipv4.NewPacketConn(conn.(*net.UDPConn))
	in, out := make([]ipv4.Message, benchWindow), make([]ipv4.Message, benchWindow)
	for i := range benchWindow {
		in[i].Buffers, out[i].Buffers = [][]byte{make([]byte, dns.MinMsgSize)}, [][]byte{query}
	}
	ask, underWay := benchWindow, 0
	for n > 0 {
		for ask > 0 {
			sent, err := packets.WriteBatch(out[:ask], 0)
			if err != nil {
				return err
			}
			ask -= sent
			underWay += sent
		}
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		taken, err := packets.ReadBatch(in, 0)
		if err != nil {
			return err
		}
		n -= taken
		ask = taken
	}
	return nil
}

// serveAPI acts as an apiserver with one Service, which never changes.
func serveAPI(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	lists := map[string]string{
		"/api/v1/services": `{"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [{"metadata":
			{"name": "kubernetes", "namespace": "default"}, "spec": {"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"], "ports": [{"port": 443}]}}]}`,
		"/api/v1/namespaces": `{"kind": "NamespaceList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [{"metadata":
			{"name": "default"}}]}`,
		"/apis/discovery.k8s.io/v1/endpointslices": `{"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": {"resourceVersion": "1"}, "items": []}`,
	}
	switch list := lists[r.URL.Path]; {
	case list == "":
		http.NotFound(w, r)
	case r.URL.Query().Get("sendInitialEvents") != "":
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422}`)
	case r.URL.Query().Get("watch") != "":
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	default:
		fmt.Fprint(w, list)
	}
}
