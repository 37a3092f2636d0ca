package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mote-k8s/mote/internal/layout"
)

// apiRetry is the pause between two requests to an API that does not serve yet. Before it listens
// there is no event to wait for.
const apiRetry = 10 * time.Millisecond

// kubeAPI is the supervisor's client of the cluster's API.
type kubeAPI struct {
	path string // of the admin kubeconfig
	name string // of the sandbox
	dial func(ctx context.Context, address string) (net.Conn, error)

	mu     sync.Mutex           // guards the fields below
	config *clientcmdapi.Config // nil until the API has answered
	client *http.Client
	server string // the API's URL inside
	nodeIP net.IP // nil until the node has an address
}

func newKubeAPI(root, name string, dial func(context.Context, string) (net.Conn, error)) *kubeAPI {
	return &kubeAPI{path: filepath.Join(root, layout.Data(dataDir).AdminKubeconfig()), name: name, dial: dial}
}

// commonName is the name in the kubeconfig of a cluster without a name of its own, on a node with
// the sandbox's default name.
const commonName = defaultHostname

// rename gives the name of this sandbox to a cluster that has the common name of all sandboxes, so
// that kubeconfigs can be merged.
func rename(config *clientcmdapi.Config, name string) {
	context := config.Contexts[config.CurrentContext]
	if config.CurrentContext != commonName || context == nil {
		return
	}
	cluster, user := config.Clusters[context.Cluster], config.AuthInfos[context.AuthInfo]
	renamed := *context
	renamed.Cluster, renamed.AuthInfo = name, name
	config.Clusters = map[string]*clientcmdapi.Cluster{name: cluster}
	config.AuthInfos = map[string]*clientcmdapi.AuthInfo{name: user}
	config.Contexts = map[string]*clientcmdapi.Context{name: &renamed}
	config.CurrentContext = name
}

// address returns the address on which the API listens inside. Until the API has answered, it is
// the default.
func (a *kubeAPI) address() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if u, err := url.Parse(a.server); err == nil && u.Host != "" {
		return u.Host
	}
	return "127.0.0.1:6443"
}

func (a *kubeAPI) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil {
		a.client.CloseIdleConnections()
	}
}

// kubeconfig returns the admin kubeconfig with server as the URL of the API.
func (a *kubeAPI) kubeconfig(server string) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	config := a.config.DeepCopy()
	rename(config, a.name)
	for _, cluster := range config.Clusters {
		cluster.Server = server
	}
	data, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("write the kubeconfig: %w", err)
	}
	return data, nil
}

// waitReady returns when the API reports that it is ready.
func (a *kubeAPI) waitReady(ctx context.Context) error {
	for {
		err := a.connect(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the API: %w; last: %w", ctx.Err(), err)
		case <-time.After(apiRetry):
		}
	}
}

// connect reads the kubeconfig and asks the API once whether it is ready. In a kept directory the
// kubeconfig exists before the server runs.
func (a *kubeAPI) connect(ctx context.Context) error {
	config, err := clientcmd.LoadFromFile(a.path)
	if err != nil {
		return err
	}
	rc, err := clientcmd.NewDefaultClientConfig(*config, nil).ClientConfig()
	if err != nil {
		return err
	}
	rc.Dial = func(ctx context.Context, _, address string) (net.Conn, error) { return a.dial(ctx, address) }
	client, err := rest.HTTPClientFor(rc)
	if err != nil {
		return err
	}
	body, err := get(ctx, client, rc.Host+"/readyz")
	if err != nil {
		client.CloseIdleConnections()
		return err
	}
	body.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.config, a.client, a.server = config, client, rc.Host
	return nil
}

// get returns the body of an answer with status 200.
func get(ctx context.Context, client *http.Client, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		resp.Body.Close()
		return nil, fmt.Errorf("get %s: %s: %s", url, resp.Status, text)
	}
	return resp.Body, nil
}

// node holds the fields of a Node that the supervisor reads.
type node struct {
	Status struct {
		Addresses  []struct{ Type, Address string }
		Conditions []struct{ Type, Status, Message string }
	}
}

func (n *node) ip() net.IP {
	for _, a := range n.Status.Addresses {
		if a.Type == "InternalIP" {
			return net.ParseIP(a.Address)
		}
	}
	return nil
}

// ready reports whether the node is Ready, and the reason if it is not.
func (n *node) ready() (bool, string) {
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True", c.Message
		}
	}
	return false, "the node has not reported yet"
}

// waitNode returns when a node is Ready, and stores its address.
func (a *kubeAPI) waitNode(ctx context.Context) error {
	why := "no node has registered"
	for {
		ready, err := a.watchNode(ctx, &why)
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the node: %w: %s (%w)", ctx.Err(), why, err)
		case <-time.After(apiRetry): // the API ended the watch, which it does from time to time
		}
	}
}

// watchNode watches the nodes until one is Ready. The watch begins with the existing nodes.
func (a *kubeAPI) watchNode(ctx context.Context, why *string) (bool, error) {
	a.mu.Lock()
	client, url := a.client, a.server+"/api/v1/nodes?watch=1"
	a.mu.Unlock()
	body, err := get(ctx, client, url)
	if err != nil {
		return false, err
	}
	defer body.Close()
	events := json.NewDecoder(body)
	for {
		var event struct{ Object node }
		if err := events.Decode(&event); err != nil {
			return false, err
		}
		var ready bool
		if ready, *why = event.Object.ready(); ready {
			a.mu.Lock()
			a.nodeIP = event.Object.ip()
			a.mu.Unlock()
			return true, nil
		}
	}
}

// dialNodePort connects to a NodePort at the node's address. Loopback does not serve NodePorts when
// kube-proxy uses nftables.
func (a *kubeAPI) dialNodePort(ctx context.Context, port uint16) (net.Conn, error) {
	ip, err := a.findNode(ctx)
	if err != nil {
		return nil, err
	}
	return a.dial(ctx, net.JoinHostPort(ip.String(), strconv.Itoa(int(port))))
}

func (a *kubeAPI) findNode(ctx context.Context) (net.IP, error) {
	a.mu.Lock()
	ip, client, url := a.nodeIP, a.client, a.server+"/api/v1/nodes"
	a.mu.Unlock()
	if ip != nil {
		return ip, nil
	}
	if client == nil {
		return nil, errNoAPI
	}
	body, err := get(ctx, client, url)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var list struct{ Items []node }
	if err := json.NewDecoder(body).Decode(&list); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range list.Items {
		if ip := n.ip(); ip != nil {
			a.mu.Lock()
			a.nodeIP = ip
			a.mu.Unlock()
			return ip, nil
		}
	}
	return nil, errors.New("no node has an address")
}
