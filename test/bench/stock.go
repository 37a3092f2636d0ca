package main

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/vishvananda/netlink"
)

const (
	stockData        = "/var/lib/stock"
	containerdSocket = "/run/containerd/containerd.sock"
	bridgeName       = "cni0"
	etcdAddress      = "127.0.0.1:2379"
)

// stock is the cluster of comparison: upstream's programs as separate processes, with mote's
// settings. Two choices favour it: its certificates are made before the clock starts, and etcd is
// reached without TLS.
type stock struct{ trial trial }

func (s *stock) path(name string) string       { return filepath.Join(stockData, name) }
func (s *stock) kubeconfig() string            { return s.path("admin.kubeconfig") }
func (s *stock) program(name string) string    { return filepath.Join(s.trial.Stock, name) }
func (s *stock) configFlag(name string) string { return "--config=" + s.path(name) }

func (s *stock) prepare() error {
	if err := os.MkdirAll(s.path("cni"), 0o700); err != nil {
		return err
	}
	if err := s.writeCertificates(); err != nil {
		return err
	}
	if err := s.writeConfigs(); err != nil {
		return err
	}
	return makeBridge()
}

// makeBridge gives the node an address: its network namespace has only the loopback.
func makeBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make bridge: %w", err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeAddress), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(bridge, address); err != nil {
		return fmt.Errorf("give the bridge its address: %w", err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("set bridge up: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

func (s *stock) writeCertificates() error {
	ca, err := newAuthority(stockData, "ca")
	if err != nil {
		return err
	}
	front, err := newAuthority(stockData, "front-proxy-ca")
	if err != nil {
		return err
	}
	loopback, node := net.ParseIP("127.0.0.1"), net.ParseIP(nodeAddress)
	err = errors.Join(
		ca.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"}, []net.IP{loopback, node, net.ParseIP("10.43.0.1")},
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"),
		ca.issue("apiserver-kubelet", pkix.Name{CommonName: "kube-apiserver-kubelet", Organization: []string{"system:masters"}}, nil),
		ca.issue("kubelet-server", pkix.Name{CommonName: "kubelet"}, []net.IP{node}, nodeName),
		ca.issue("service-account", pkix.Name{CommonName: "service-account"}, nil), // only its key is used
		front.issue("front-proxy", pkix.Name{CommonName: "front-proxy-client"}, nil),
	)
	if err != nil {
		return err
	}
	for file, subject := range map[string]pkix.Name{
		"admin":              {CommonName: "admin", Organization: []string{"system:masters"}},
		"controller-manager": {CommonName: "system:kube-controller-manager"},
		"scheduler":          {CommonName: "system:kube-scheduler"},
		"proxy":              {CommonName: "system:kube-proxy"},
		"kubelet":            {CommonName: "system:node:" + nodeName, Organization: []string{"system:nodes"}},
	} {
		if err := ca.issue(file, subject, nil); err != nil {
			return err
		}
		text := fmt.Sprintf(kubeconfigTemplate, stockData, file)
		if err := os.WriteFile(s.path(file+".kubeconfig"), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// start starts etcd and containerd at once, and each of the others as early as it is useful: a
// program that is started before the one that it needs spends its time in retries and their
// back-off.
func (s *stock) start(ctx context.Context, p *programs) error {
	etcd := []string{s.program("etcd"), "--name=bench", "--data-dir=" + s.path("etcd"),
		"--listen-client-urls=http://" + etcdAddress, "--advertise-client-urls=http://" + etcdAddress,
		"--listen-peer-urls=http://127.0.0.1:2380", "--log-level=warn"}
	if err := p.start("etcd", nil, etcd...); err != nil {
		return err
	}
	path := "PATH=" + s.trial.Payload + ":" + os.Getenv("PATH") // containerd finds the shim there
	if err := p.start("containerd", []string{path}, s.program("containerd"), s.configFlag("containerd.toml")); err != nil {
		return err
	}
	go func() {
		if err := s.startControlPlane(ctx, p); err != nil {
			p.fail(err)
		}
	}()
	go func() {
		if err := s.importImages(ctx); err != nil {
			p.fail(err)
		}
	}()
	return nil
}

func (s *stock) startControlPlane(ctx context.Context, p *programs) error {
	if err := poll(ctx, func() error { return reachable(etcdAddress) }); err != nil {
		return fmt.Errorf("wait for etcd: %w", err)
	}
	if err := p.start("kube-apiserver", nil, append([]string{s.program("kube-apiserver")}, s.apiserverFlags()...)...); err != nil {
		return err
	}
	c, err := waitAPI(ctx, s.kubeconfig())
	if err != nil {
		return err
	}
	c.close()
	for _, one := range [][]string{
		append([]string{"kube-controller-manager"}, s.controllerManagerFlags()...),
		append([]string{"kube-scheduler"}, s.schedulerFlags()...),
		append([]string{"kubelet"}, s.kubeletFlags()...),
		{"kube-proxy", s.configFlag("proxy.yaml"), "--hostname-override=" + nodeName},
	} {
		if err := p.start(one[0], nil, append([]string{s.program(one[0])}, one[1:]...)...); err != nil {
			return err
		}
	}
	return nil
}

func reachable(address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// importImages imports the images that mote finds in its images directory.
func (s *stock) importImages(ctx context.Context) error {
	if s.trial.Images == "" {
		return nil
	}
	var c *containerd.Client
	if err := poll(ctx, func() (err error) {
		if _, err = os.Stat(containerdSocket); err != nil {
			return err
		}
		c, err = containerd.New(containerdSocket, containerd.WithDefaultNamespace("k8s.io"))
		return err
	}); err != nil {
		return fmt.Errorf("reach containerd: %w", err)
	}
	defer c.Close()
	archive, err := os.Open(s.trial.Images)
	if err != nil {
		return err
	}
	defer archive.Close()
	images, err := c.Import(namespaces.WithNamespace(ctx, "k8s.io"), archive)
	if err != nil {
		return fmt.Errorf("import images: %w", err)
	}
	for _, image := range images {
		if err := containerd.NewImage(c, image).Unpack(ctx, "overlayfs"); err != nil {
			return fmt.Errorf("unpack %s: %w", image.Name, err)
		}
	}
	return nil
}
