package metrics

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/oauth2"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
	"sigs.k8s.io/metrics-server/pkg/scraper/client"
)

const (
	// tokenLifetime is the shortest lifetime that the API grants without a warning in the audit
	// log.
	tokenLifetime = time.Hour
	// tokenTimeout limits the time that the apiserver takes to issue a token. It takes a
	// millisecond on an idle machine.
	tokenTimeout = 10 * time.Second
	kubeletPort  = 10250
)

// kubelets returns the configuration of the clients for kubelets. They act as upstream's service
// account. A kubelet does not support impersonation, so the clients use a token. The token is kept
// in memory and renewed when it is due or was refused.
func (s *Server) kubelets() *client.KubeletClientConfig {
	tokens := transport.NewCachedTokenSource(tokenSource{s.kube})
	return &client.KubeletClientConfig{
		Scheme: "https", DefaultPort: kubeletPort, UseNodeStatusPort: true,
		// Addresses come first: the name of a node may not resolve.
		AddressTypePriority: []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeHostName},
		Client: rest.Config{
			TLSClientConfig: rest.TLSClientConfig{CAFile: s.cfg.Access.CAFile},
			UserAgent:       "mote-" + Name, Timeout: sampleTimeout,
			// A proxy for the outside world cannot reach the nodes.
			Proxy:         func(*http.Request) (*url.URL, error) { return nil, nil },
			WrapTransport: transport.ResettableTokenSourceWrapTransport(tokens),
		},
	}
}

// tokenSource requests tokens of the account from the apiserver. Nothing of that is stored in the
// cluster.
type tokenSource struct{ kube kubernetes.Interface }

// Token implements oauth2.TokenSource.
func (t tokenSource) Token() (*oauth2.Token, error) {
	ctx, cancel := context.WithTimeout(context.Background(), tokenTimeout)
	defer cancel()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: new(int64(tokenLifetime / time.Second)),
	}}
	got, err := t.kube.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("get a token of %s/%s: %w", namespace, account, err)
	}
	return &oauth2.Token{AccessToken: got.Status.Token, Expiry: got.Status.ExpirationTimestamp.Time}, nil
}
