package ingress

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// These constants configure the comparison with nginx: scripts/bench addons ingress. Proxies,
// backend and clients are separate processes on one machine. The proxies are measured in turn,
// round by round.
const (
	benchRounds      = 5
	benchRound       = 3 * time.Second
	benchConnections = 64
	// benchVariable makes this test binary run as the proxy in front of the address in the
	// variable.
	benchVariable = "MOTE_BENCH_INGRESS_BACKEND"
)

const backendConfig = `
daemon off; worker_processes 1; pid %[1]s/pid; error_log stderr;
events { worker_connections 4096; }
http {
	access_log off; keepalive_requests 1000000000;
	client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	server { listen 127.0.0.1:%[2]s; location / { return 200 "%[3]s"; } }
}`

// nginxConfig configures nginx as an ingress: it keeps connections to backends and sends them the
// client's address.
const nginxConfig = `
daemon off; worker_processes auto; pid %[1]s/pid; error_log stderr;
events { worker_connections 4096; }
http {
	access_log off; keepalive_requests 1000000000;
	client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
	upstream backend { server %[3]s; keepalive 320; keepalive_requests 1000000000; }
	server {
		listen 127.0.0.1:%[2]s; server_name a.test;
		location / {
			proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
			proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Host $host; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Port 80;
		}
	}
}`

// TestBenchProxy runs the process of the proxy. It ends when its standard input ends.
func TestBenchProxy(t *testing.T) {
	backend := os.Getenv(benchVariable)
	if backend == "" {
		t.Skip("it is a part of BenchmarkNginx")
	}
	l := newLab(t)
	l.lead("web", "", backend)
	l.add(`{rules: [{host: a.test, http: {paths: [{path: /, pathType: Prefix, backend: ` + toWeb + `}]}}]}`)
	l.apply()
	fmt.Println("listens on", l.http)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// BenchmarkNginx compares requests a second and processor time of this package and nginx as a
// proxy.
func BenchmarkNginx(b *testing.B) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		b.Skip("needs nginx: ", err)
	}
	for _, size := range []int{128, 2 << 10} {
		b.Run(fmt.Sprintf("%d bytes", size), func(b *testing.B) {
			backend := startNginx(b, nginx, backendConfig, strings.Repeat("x", size))
			proxies := map[string]*process{
				"nginx": startNginx(b, nginx, nginxConfig, backend.address), "mote": startProxy(b, backend.address),
			}
			rates, costs := map[string][]float64{}, map[string][]float64{}
			var ratios []float64
			for range b.N * benchRounds {
				for _, name := range []string{"nginx", "mote"} {
					p := proxies[name]
					before := p.cpu(b)
					requests, took := load(b, p.address)
					rates[name] = append(rates[name], float64(requests)/took.Seconds())
					costs[name] = append(costs[name], (p.cpu(b)-before).Seconds()*1e6/float64(requests))
				}
				ratios = append(ratios, rates["mote"][len(ratios)]/rates["nginx"][len(ratios)])
			}
			for name := range proxies {
				b.ReportMetric(median(rates[name]), name+"-requests/s")
				b.ReportMetric(median(costs[name]), name+"-cpu-µs/request")
			}
			b.ReportMetric(median(ratios), "ratio")
			b.ReportMetric(0, "ns/op") // has no meaning here
		})
	}
}

// BenchmarkCompile measures the cost of a change in a cluster with 1,000 Ingresses for Services of
// ten pods each.
func BenchmarkCompile(b *testing.B) {
	p, err := newProxy(80, 443)
	require.NoError(b, err)
	c, from := compiler{proxy: p}, objects{
		service: func(namespace, name string) *corev1.Service {
			return &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
			}
		},
		slices: func(_, name string) []*discoveryv1.EndpointSlice {
			port, slice := int32(8080), &discoveryv1.EndpointSlice{}
			slice.Ports = []discoveryv1.EndpointPort{{Port: &port}}
			for n := range 10 {
				slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%s.0.%d", name, n)}})
			}
			return []*discoveryv1.EndpointSlice{slice}
		},
	}
	for n := range 1000 {
		name, prefix := strconv.Itoa(n), networkingv1.PathTypePrefix
		i := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)}}
		backend := networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: name, Port: networkingv1.ServiceBackendPort{Number: 80}}}
		i.Spec.Rules = []networkingv1.IngressRule{{Host: name + ".test", IngressRuleValue: networkingv1.IngressRuleValue{
			HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{{Path: "/", PathType: &prefix, Backend: backend}}},
		}}}
		from.ingresses = append(from.ingresses, i)
	}
	for b.Loop() {
		if _, found := c.compile(from, time.Now()); len(found) > 0 {
			b.Fatal(found)
		}
	}
}

func median(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

// process is a server that a benchmark started.
type process struct {
	address string
	cmd     *exec.Cmd
}

func startNginx(b *testing.B, program, config, value string) *process {
	b.Helper()
	dir := b.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	address := listener.Addr().String()
	_, port, err := net.SplitHostPort(address)
	require.NoError(b, err)
	require.NoError(b, listener.Close())
	file := filepath.Join(dir, "conf")
	require.NoError(b, os.WriteFile(file, fmt.Appendf(nil, config, dir, port, value), 0o600))
	require.NoError(b, os.Chmod(dir, 0o777)) // its workers run as another user
	p := &process{address, exec.Command(program, "-c", file, "-e", "stderr")}
	p.cmd.Stderr = os.Stderr
	require.NoError(b, p.cmd.Start())
	b.Cleanup(func() { _ = p.cmd.Process.Signal(os.Interrupt); _ = p.cmd.Wait() })
	require.Eventually(b, func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, 10*time.Second, 10*time.Millisecond)
	return p
}

func startProxy(b *testing.B, backend string) *process {
	b.Helper()
	p := &process{cmd: exec.Command(os.Args[0], "-test.run=^TestBenchProxy$")}
	p.cmd.Env = append(os.Environ(), benchVariable+"="+backend, "GOGC=50") // as for an idle mote
	stdin, err := p.cmd.StdinPipe()
	require.NoError(b, err)
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, p.cmd.Start())
	b.Cleanup(func() { _ = stdin.Close(); _ = p.cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(b, err)
	p.address = strings.TrimSpace(strings.TrimPrefix(line, "listens on "))
	return p
}

// cpu returns the processor time of the process and its children, in clock ticks of 10 ms: proc(5).
func (p *process) cpu(b *testing.B) (used time.Duration) {
	b.Helper()
	pids := []string{strconv.Itoa(p.cmd.Process.Pid)}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%s/task/%[1]s/children", pids[0]))
	require.NoError(b, err)
	for _, pid := range append(pids, strings.Fields(string(children))...) {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		require.NoError(b, err)
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+2:]))
		for _, field := range fields[11:13] {
			ticks, err := strconv.Atoi(field)
			require.NoError(b, err)
			used += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return used
}

// load sends requests on all connections for a round, one after the other on each.
func load(b *testing.B, address string) (requests int64, took time.Duration) {
	b.Helper()
	var done atomic.Int64
	var askers sync.WaitGroup
	started := time.Now()
	for range benchConnections {
		askers.Go(func() {
			n, err := askFor(address, benchRound)
			done.Add(n)
			if err != nil {
				b.Error(err)
			}
		})
	}
	askers.Wait()
	return done.Load(), time.Since(started)
}

// askFor is a client that itself uses little processor time.
func askFor(address string, limit time.Duration) (requests int64, err error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	answers := bufio.NewReaderSize(conn, 32<<10)
	for end := time.Now().Add(limit); time.Now().Before(end); requests++ {
		if _, err := io.WriteString(conn, "GET /path HTTP/1.1\r\nHost: a.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"); err != nil {
			return requests, err
		}
		line, err := answers.ReadSlice('\n')
		if err != nil {
			return requests, err
		}
		if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
			return requests, errors.New(string(line))
		}
		length := 0
		for len(line) > 2 {
			if line, err = answers.ReadSlice('\n'); err != nil {
				return requests, err
			}
			if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
				length, _ = strconv.Atoi(string(bytes.TrimSpace(value)))
			}
		}
		if _, err := answers.Discard(length); err != nil {
			return requests, err
		}
	}
	return requests, nil
}
