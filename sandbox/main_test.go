package sandbox

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// TestMain lets the test program run in all roles: as the keeper and the first process, like mote;
// as a small server in place of mote's; and as a supervisor that a test can kill.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		parts := map[string]func([]string) error{
			VerbKeeper:  func(args []string) error { return Keep(args[0], args[1], os.Stdin, os.Stdout) },
			VerbInit:    func([]string) error { return becomeServer() },
			"server":    serveDummy,
			"supervise": supervise,
		}
		if part := parts[os.Args[1]]; part != nil {
			if err := part(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func becomeServer() error {
	argv, env, err := Enter(os.Stdin)
	if err != nil {
		return err
	}
	return unix.Exec(argv[0], argv, env)
}

// supervise runs a command in a sandbox, as "mote run" does. Its arguments are a Config in JSON and
// the command.
func supervise(args []string) error {
	var cfg Config
	if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
		return err
	}
	cfg.Log = os.Stderr
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	ctx, cancel := context.WithCancelCause(context.Background())
	started := make(chan struct{})
	go func() {
		select {
		case sig := <-signals:
			cancel(fmt.Errorf("got signal %v", sig))
		case <-started:
		}
	}()
	s, err := Start(ctx, cfg)
	close(started)
	if err != nil {
		return err
	}
	code, err := s.Run(Command{Args: args[1:], Stdout: os.Stdout, Stderr: os.Stderr}, signals)
	if err := errors.Join(err, s.Close()); err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

// serveDummy is the server of the tests' sandboxes. It answers the requests of Start, and /self
// with its view of the surroundings. A node is Ready from the second event of a watch on.
func serveDummy(args []string) error {
	if len(args) > 0 && args[0] == "broken" {
		return errors.New("this server is broken")
	}
	cert, ca, err := selfSigned()
	if err != nil {
		return err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["mote"] = &clientcmdapi.Cluster{Server: "https://127.0.0.1:6443", CertificateAuthorityData: ca}
	config.AuthInfos["mote"] = &clientcmdapi.AuthInfo{Token: "secret"}
	config.Contexts["mote"] = &clientcmdapi.Context{Cluster: "mote", AuthInfo: "mote"}
	config.CurrentContext = "mote"
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	mux.HandleFunc("/api/v1/nodes", serveNodes)
	mux.HandleFunc("/self", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(lookAround()) })
	listen := sync.OnceValue(serveNodePort)
	mux.HandleFunc("/listen", func(http.ResponseWriter, *http.Request) { _ = listen() })
	if len(args) == 0 || args[0] != "late" {
		if err := listen(); err != nil {
			return err
		}
	}
	l, err := tls.Listen("tcp", "127.0.0.1:6443", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		return err
	}
	if err := clientcmd.WriteToFile(*config, dataDir+"/kubeconfig"); err != nil {
		return err
	}
	if len(args) > 0 && args[0] == "not-ready" {
		mux = http.NewServeMux()
	}
	stop, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer cancel()
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	fmt.Println("dummy server is up")
	<-stop.Done()
	return os.WriteFile(dataDir+"/stopped", nil, 0o600)
}

// serveNodePort answers on a NodePort after the caller has closed its half of the connection.
func serveNodePort() error {
	nodePort, err := net.Listen("tcp", "127.0.0.1:30080")
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := nodePort.Accept()
			if err != nil {
				return
			}
			go func() {
				data, _ := io.ReadAll(conn)
				fmt.Fprintf(conn, "got %d bytes", len(data))
				conn.Close()
			}()
		}
	}()
	return nil
}

func serveNodes(w http.ResponseWriter, _ *http.Request) {
	const event = `{"type":"ADDED","object":{"status":{"addresses":[{"type":"InternalIP","address":"127.0.0.1"}],` +
		`"conditions":[{"type":"Ready","status":%q}]}}}`
	fmt.Fprintf(w, event, "False")
	w.(http.Flusher).Flush()
	fmt.Fprintf(w, event, "True")
}

func selfSigned() (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// surroundings is the dummy server's view of the system around it.
type surroundings struct {
	PID        int
	Hostname   string
	Links      []string
	Namespaces map[string]string
	Mounts     []*mountinfo.Info
	Cgroup     string
	Images     []string
	Writable   []string // names of images that can be written
	Errors     []string // failures of things that a server must be able to do
}

func lookAround() surroundings {
	s := surroundings{PID: os.Getpid(), Namespaces: namespaces("self")}
	s.Hostname, _ = os.Hostname()
	links, _ := net.Interfaces()
	for _, l := range links {
		s.Links = append(s.Links, l.Name+" "+l.Flags.String())
	}
	s.Mounts, _ = readMounts()
	cgroup, _ := os.ReadFile("/proc/self/cgroup")
	s.Cgroup = string(cgroup)
	images, _ := os.ReadDir(dataDir + "/images")
	for _, i := range images {
		s.Images = append(s.Images, i.Name())
		if f, err := os.OpenFile(dataDir+"/images/"+i.Name(), os.O_WRONLY, 0); err == nil {
			f.Close()
			s.Writable = append(s.Writable, i.Name())
		}
	}
	check := func(err error) {
		if err != nil {
			s.Errors = append(s.Errors, err.Error())
		}
	}
	// These files are over the host's files, and in places.
	for _, path := range []string{"/etc/sandbox-test", "/usr/sandbox-test", "/dev/sandbox-test", "/tmp/sandbox-test", "/var/log/sandbox-test"} {
		check(os.WriteFile(path, []byte("inside"), 0o600))
	}
	check(os.WriteFile("/proc/sys/kernel/panic", []byte("77"), 0))
	check(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
	check(os.WriteFile("/dev/null", []byte("x"), 0))
	check(overlayOnData())
	hs, err := hierarchies()
	check(err)
	for _, h := range hs {
		group := h.mount + "/kubepods"
		check(os.Mkdir(group, 0o755))
		check(inheritCPUSet(group))
	}
	return s
}

// overlayOnData mounts an overlay as containerd does for a container.
func overlayOnData() error {
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(dataDir+"/"+d, 0o755); err != nil {
			return err
		}
	}
	return mount("overlay", dataDir+"/merged", "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dataDir))
}

func namespaces(pid string) map[string]string {
	found := make(map[string]string)
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "uts"} {
		found[kind], _ = os.Readlink("/proc/" + pid + "/ns/" + kind)
	}
	return found
}
