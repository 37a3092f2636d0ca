package agent

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	kubeletserver "k8s.io/kubernetes/pkg/kubelet/server"
)

// TestOwnMetricsNeedTheRightOfUpstreams checks that mote's metrics pages need the right that
// upstream's need: get on nodes/metrics. All other pages are upstream's.
func TestOwnMetricsNeedTheRightOfUpstreams(t *testing.T) {
	auth := kubeletserver.NewKubeletAuth(
		authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
			name, _, ok := r.BasicAuth()
			return &authenticator.Response{User: &user.DefaultInfo{Name: name}}, ok, nil
		}),
		kubeletserver.NewNodeAuthorizerAttributesGetter("node"),
		authorizer.AuthorizerFunc(func(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
			switch {
			case a.GetUser().GetName() == "unlucky":
				return authorizer.DecisionDeny, "", errors.New("the apiserver does not answer")
			case a.GetUser().GetName() == "prometheus" && a.GetVerb() == "get" && a.GetResource() == "nodes" && a.GetSubresource() == "metrics":
				return authorizer.DecisionAllow, "", nil
			}
			return authorizer.DecisionNoOpinion, "", nil
		}), nil)
	handler := ownMetrics(auth, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	for _, c := range []struct {
		path, who string
		want      int
	}{
		{"/metrics", "prometheus", http.StatusOK},
		{"/metrics/slis", "prometheus", http.StatusOK},
		{"/metrics", "", http.StatusUnauthorized},
		{"/metrics/slis", "", http.StatusUnauthorized},
		{"/metrics", "pod", http.StatusForbidden},
		{"/metrics", "unlucky", http.StatusInternalServerError},
		{"/metrics/cadvisor", "prometheus", http.StatusTeapot},
		{"/pods", "", http.StatusTeapot},
	} {
		response, request := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, c.path, nil)
		if c.who != "" {
			request.SetBasicAuth(c.who, "")
		}
		handler.ServeHTTP(response, request)
		require.Equal(t, c.want, response.Code, "%s for %q", c.path, c.who)
	}
}
