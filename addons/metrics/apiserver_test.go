package metrics

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clientgotesting "k8s.io/client-go/testing"
	"k8s.io/client-go/util/cert"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// authority returns some certificate in PEM.
func authority(t *testing.T) string {
	t.Helper()
	data, _, err := cert.GenerateSelfSignedCertKey("ca", nil, nil)
	require.NoError(t, err)
	block, _ := pem.Decode(data)
	return string(pem.EncodeToMemory(block))
}

func trustMap(t *testing.T) *corev1.ConfigMap {
	t.Helper()
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "extension-apiserver-authentication"},
		Data: map[string]string{
			"client-ca-file":                     authority(t),
			"requestheader-client-ca-file":       authority(t),
			"requestheader-allowed-names":        `["front-proxy-client"]`,
			"requestheader-username-headers":     `["X-Remote-User"]`,
			"requestheader-uid-headers":          `["X-Remote-Uid"]`,
			"requestheader-group-headers":        `["X-Remote-Group"]`,
			"requestheader-extra-headers-prefix": `["X-Remote-Extra-"]`,
		},
	}
}

func TestTrustIsTheApiservers(t *testing.T) {
	trust, err := readTrust(t.Context(), fake.NewClientset(trustMap(t)))
	require.NoError(t, err)
	require.Equal(t, []string{"front-proxy-client"}, trust.RequestHeaderConfig.AllowedClientNames.Value())
	require.Equal(t, []string{"X-Remote-Group"}, trust.RequestHeaderConfig.GroupHeaders.Value())
	require.Nil(t, trust.Anonymous, "who cannot say who they are has no business here")
	_, _, err = trust.New()
	require.NoError(t, err)
}

// TestNoTrustByMistake checks that an incomplete ConfigMap causes a wait, as it may be half
// written. An empty list of names would allow every certificate of the authority to act for any
// user.
func TestNoTrustByMistake(t *testing.T) {
	_, err := readTrust(t.Context(), fake.NewClientset())
	require.ErrorContains(t, err, "read whom the apiserver trusts")
	for key := range trustMap(t).Data {
		config := trustMap(t)
		delete(config.Data, key)
		_, err := readTrust(t.Context(), fake.NewClientset(config))
		require.ErrorContains(t, err, key)
	}
}

func TestTokenIsTheAccounts(t *testing.T) {
	kube := fake.NewClientset()
	kube.PrependReactor("create", "serviceaccounts", func(action clientgotesting.Action) (bool, runtime.Object, error) {
		require.Equal(t, "token", action.GetSubresource())
		request := action.(clientgotesting.CreateActionImpl)
		require.Equal(t, account, request.Name)
		require.Equal(t, int64(3600), *request.Object.(*authenticationv1.TokenRequest).Spec.ExpirationSeconds)
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: "t"}}, nil
	})
	token, err := tokenSource{kube}.Token()
	require.NoError(t, err)
	require.Equal(t, "t", token.AccessToken)
}

func TestObjectsLeadHere(t *testing.T) {
	cfg := Config{Address: netip.MustParseAddr("10.42.0.1"), NodeName: "a"}
	var slice *discoveryv1.EndpointSlice
	for _, o := range cfg.objects() {
		if s, ok := o.Object.(*discoveryv1.EndpointSlice); ok {
			slice = s
		}
	}
	require.Equal(t, []string{"10.42.0.1"}, slice.Endpoints[0].Addresses)
	require.Equal(t, int32(Port), *slice.Ports[0].Port)
	registered := registration([]byte("ca")).Object.(*apiregistrationv1.APIService)
	require.Equal(t, "v1beta1.metrics.k8s.io", registered.Name)
	require.Equal(t, ServiceName, registered.Spec.Service.Name+"."+registered.Spec.Service.Namespace+".svc")
	require.False(t, registered.Spec.InsecureSkipTLSVerify)
}

func TestCertificateMustBeThere(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	s := &Server{cfg: Config{CertFile: none, KeyFile: none}}
	_, err := s.apiserver(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestIdleServerHasNoTimer checks that none of the goroutines that upstream starts with each server
// runs.
func TestIdleServerHasNoTimer(t *testing.T) {
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		config := trustMap(t)
		config.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}
		assert.NoError(t, json.NewEncoder(w).Encode(config))
	}))
	defer front.Close()
	certificate, key, err := cert.GenerateSelfSignedCertKey(ServiceName, nil, nil)
	require.NoError(t, err)
	dir := t.TempDir()
	s := &Server{
		client: &rest.Config{Host: front.URL},
		cfg: Config{
			Address:  netip.MustParseAddr("127.42.0.1"),
			CertFile: filepath.Join(dir, "crt"), KeyFile: filepath.Join(dir, "key"),
		},
	}
	require.NoError(t, os.WriteFile(s.cfg.CertFile, certificate, 0o600))
	require.NoError(t, os.WriteFile(s.cfg.KeyFile, key, 0o600))
	server, err := s.apiserver(t.Context())
	require.NoError(t, err)
	defer server.SecureServingInfo.Listener.Close()
	for _, check := range server.HealthzChecks() {
		require.False(t, strings.HasPrefix(check.Name(), "poststarthook/"), check.Name())
	}
}
