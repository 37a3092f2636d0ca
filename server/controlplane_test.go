package server

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"github.com/mote-k8s/mote/internal/component"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/server/pki"
)

// inNamespace is set for the child process of this test that has a network namespace of its own.
const inNamespace = "MOTE_TEST_IN_NAMESPACE"

const startTimeout = 2 * time.Minute // long enough for machines that compile something at the same time

// TestControlPlane runs the three components over a real etcd: mote's store is in another package.
func TestControlPlane(t *testing.T) {
	etcd := findEtcd(t)
	if os.Getenv(inNamespace) == "" {
		if os.Getuid() != 0 {
			t.Skip("needs root, for a network namespace")
		}
		child := exec.Command(os.Args[0], "-test.run=^TestControlPlane$", "-test.v", "-test.timeout=5m")
		child.Env = append(os.Environ(), inNamespace+"=1")
		child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		output, err := child.CombinedOutput()
		require.NoError(t, err, string(output))
		return
	}
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(lo))

	cfg := testConfig(t)
	cfg.DatastoreEndpoint = startEtcd(t, etcd)
	cfg.NodeRanges = map[string]netip.Prefix{"node1": netip.MustParsePrefix("10.42.7.1/24")}
	plane, err := Prepare(cfg)
	require.NoError(t, err)
	stop := run(t, plane.APIServer(), plane.ControllerManager(), plane.Scheduler())

	admin, err := clientcmd.BuildConfigFromFlags("", cfg.AdminKubeconfig)
	require.NoError(t, err)
	client, err := kubernetes.NewForConfig(admin)
	require.NoError(t, err)
	t.Run("bootstrap policy is there", func(t *testing.T) { checkPolicy(t, client) })
	t.Run("secrets are encrypted", func(t *testing.T) { checkEncryption(t, client, cfg.DatastoreEndpoint) })
	t.Run("kubernetes Service", func(t *testing.T) { checkService(t, client, cfg) })
	t.Run("service account tokens", func(t *testing.T) { checkTokens(t, client, admin) })
	t.Run("strangers", func(t *testing.T) { checkStrangers(t, admin) })
	t.Run("authorities that are gone", func(t *testing.T) { checkTrust(t, client, plane) })
	t.Run("nodes", func(t *testing.T) { checkNode(t, client, plane) })
	t.Run("renewal", func(t *testing.T) { checkRenewal(t, plane) })
	stop()
}

func findEtcd(t *testing.T) string {
	built, err := filepath.Abs("../bin/stock/etcd") // scripts/test unit and scripts/bench build it
	require.NoError(t, err)
	for _, name := range []string{os.Getenv("MOTE_TEST_ETCD"), built, "etcd"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("needs etcd: in $MOTE_TEST_ETCD, bin/stock or $PATH")
	return ""
}

func startEtcd(t *testing.T, path string) string {
	const endpoint = "http://127.0.0.1:2379" // of this namespace
	command := exec.Command(path, "--data-dir", t.TempDir(), "--log-level", "error")
	command.Stderr = os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
	})
	return endpoint
}

// run starts the first component and, when it is ready, the others; stop stops all.
func run(t *testing.T, first component.Component, others ...component.Component) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := map[string]chan error{}
	start := func(c component.Component) {
		done := make(chan error, 1)
		ended[c.Name()] = done
		go func() { done <- c.Run(ctx) }()
	}
	wait := func(c component.Component) {
		limit, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		require.NoError(t, c.Ready(limit), c.Name())
	}
	start(first)
	wait(first)
	for _, c := range others {
		start(c)
	}
	for _, c := range others {
		wait(c)
	}
	return func() {
		cancel()
		for name, done := range ended {
			require.NoError(t, <-done, name)
		}
	}
}

func checkPolicy(t *testing.T, client kubernetes.Interface) {
	for _, role := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		got, err := client.RbacV1().ClusterRoles().Get(t.Context(), role.Name, metav1.GetOptions{})
		require.NoError(t, err)
		if role.AggregationRule == nil {
			require.Len(t, got.Rules, len(role.Rules), role.Name)
		}
	}
	for _, binding := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		got, err := client.RbacV1().ClusterRoleBindings().Get(t.Context(), binding.Name, metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, binding.Subjects, got.Subjects)
	}
	for namespace, roles := range bootstrappolicy.NamespaceRoles() {
		for _, role := range roles {
			_, err := client.RbacV1().Roles(namespace).Get(t.Context(), role.Name, metav1.GetOptions{})
			require.NoError(t, err)
		}
	}
	for _, name := range []string{"system-cluster-critical", "system-node-critical"} {
		_, err := client.SchedulingV1().PriorityClasses().Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
	}
}

func checkEncryption(t *testing.T, client kubernetes.Interface, endpoint string) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"key": "plain words"}}
	_, err := client.CoreV1().Secrets("default").Create(t.Context(), secret, metav1.CreateOptions{})
	require.NoError(t, err)
	store, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
	require.NoError(t, err)
	defer store.Close()
	got, err := store.Get(t.Context(), "/registry/secrets/default/s")
	require.NoError(t, err)
	require.Len(t, got.Kvs, 1)
	require.True(t, strings.HasPrefix(string(got.Kvs[0].Value), "k8s:enc:secretbox:v1:key1:"))
	require.NotContains(t, string(got.Kvs[0].Value), "plain words")
}

func checkService(t *testing.T, client kubernetes.Interface, cfg Config) {
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		service, err := client.CoreV1().Services("default").Get(context.Background(), "kubernetes", metav1.GetOptions{})
		if assert.NoError(t, err) {
			assert.Equal(t, cfg.apiServiceAddress().String(), service.Spec.ClusterIP)
		}
		slice, err := client.DiscoveryV1().EndpointSlices("default").Get(context.Background(), "kubernetes", metav1.GetOptions{})
		if assert.NoError(t, err) && assert.Len(t, slice.Endpoints, 1) {
			assert.Equal(t, []string{cfg.AdvertiseAddress.String()}, slice.Endpoints[0].Addresses)
		}
	}, startTimeout, 50*time.Millisecond)
}

func checkTokens(t *testing.T, client kubernetes.Interface, admin *rest.Config) {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "app"}}
	_, err := client.CoreV1().ServiceAccounts("default").Create(t.Context(), account, metav1.CreateOptions{})
	require.NoError(t, err)
	token, err := client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "app", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	require.NoError(t, err)
	config := rest.AnonymousClientConfig(admin)
	config.BearerToken = token.Status.Token
	app, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	review, err := app.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Equal(t, "system:serviceaccount:default:app", review.Status.UserInfo.Username)
}

func checkStrangers(t *testing.T, admin *rest.Config) {
	stranger, err := kubernetes.NewForConfig(rest.AnonymousClientConfig(admin))
	require.NoError(t, err)
	_, err = stranger.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), err)
	_, err = stranger.Discovery().RESTClient().Get().AbsPath("/api").DoRaw(t.Context())
	require.True(t, apierrors.IsForbidden(err), err)
	_, err = stranger.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(t.Context())
	require.NoError(t, err)
}

// checkTrust checks the ConfigMap with the authorities that aggregated API servers trust. Upstream
// writes the present ones. A previous one stays in it until the next start removes it.
func checkTrust(t *testing.T, client kubernetes.Interface, plane *ControlPlane) {
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	const name = "extension-apiserver-authentication"
	gone := authorityOf(t, t.TempDir())
	bundle := plane.creds.Bundle(pki.ClientAuthority)
	data, err := os.ReadFile(bundle)
	require.NoError(t, err)
	trusted := string(data)
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		config, err := maps.Get(context.Background(), name, metav1.GetOptions{})
		if assert.NoError(t, err) && assert.Equal(t, trusted, config.Data["client-ca-file"]) {
			config.Data["client-ca-file"] += gone
			_, err = maps.Update(context.Background(), config, metav1.UpdateOptions{})
			assert.NoError(t, err)
		}
	}, startTimeout, 50*time.Millisecond)
	files := map[string]string{"client-ca-file": bundle}
	for range 2 {
		require.NoError(t, forgetAuthorities(t.Context(), client, files))
		config, err := maps.Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, trusted, config.Data["client-ca-file"])
	}
}

// authorityOf returns the certificate of another cluster's client authority, which it creates in
// dir.
func authorityOf(t *testing.T, dir string) string {
	other := pki.New(layout.Data(dir))
	require.NoError(t, other.MakeDirs())
	require.NoError(t, other.Load())
	data, err := os.ReadFile(other.Bundle(pki.ClientAuthority))
	require.NoError(t, err)
	return string(data)
}

// checkNode acts as the kubelet of IssueNode: it may register itself and no other node. Its node
// has its pod network from the start, and the controller manager gives another one to a node that
// mote did not create.
func checkNode(t *testing.T, client kubernetes.Interface, plane *ControlPlane) {
	dir := filepath.Join(t.TempDir(), "credentials")
	require.NoError(t, plane.IssueNode(dir, "node1", nil))
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "kubelet.kubeconfig"))
	require.NoError(t, err)
	kubelet, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	const own = "10.42.7.0/24"
	made, err := kubelet.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{own}, made.Spec.PodCIDRs)
	require.Equal(t, own, made.Spec.PodCIDR)
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node2"}}
	_, err = kubelet.CoreV1().Nodes().Create(t.Context(), other, metav1.CreateOptions{})
	require.True(t, apierrors.IsForbidden(err), err)
	_, err = client.CoreV1().Nodes().Create(t.Context(), other, metav1.CreateOptions{})
	require.NoError(t, err)
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		nodes, err := client.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
		if assert.NoError(t, err) && assert.Len(t, nodes.Items, 2) {
			assert.Equal(t, []string{own}, nodes.Items[0].Spec.PodCIDRs)
			assert.Len(t, nodes.Items[1].Spec.PodCIDRs, 1)
			assert.NotEqual(t, []string{own}, nodes.Items[1].Spec.PodCIDRs)
		}
	}, startTimeout, 50*time.Millisecond)
}

// checkRenewal lets most of the certificates' lifetime pass and waits until the running apiserver
// serves the new one.
func checkRenewal(t *testing.T, plane *ControlPlane) {
	served := func() string {
		conn, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", "6443"), &tls.Config{InsecureSkipVerify: true})
		require.NoError(t, err)
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := served()
	plane.now = func() time.Time { return time.Now().Add(year * 3 / 4) }
	require.NoError(t, plane.renew())
	require.Eventually(t, func() bool { return served() != before }, startTimeout, 50*time.Millisecond)
	limit, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	require.NoError(t, plane.APIServer().Ready(limit))
}
