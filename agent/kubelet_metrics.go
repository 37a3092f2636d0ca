package agent

import (
	"fmt"
	"log/slog"
	"net/http"

	"k8s.io/apiserver/pkg/authorization/authorizer"
	kubeletserver "k8s.io/kubernetes/pkg/kubelet/server"

	"github.com/mote-k8s/mote/internal/series"
)

// ownMetrics serves the kubelet's own series at /metrics and /metrics/slis. Upstream shows those of
// the whole process there. /metrics/cadvisor, /metrics/resource and /metrics/probes have registries
// of their own.
func ownMetrics(auth kubeletserver.AuthInterface, upstream http.Handler) http.Handler {
	own := series.Endpoints(series.Kubelet)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, ok := own[r.URL.Path]
		if !ok {
			upstream.ServeHTTP(w, r)
			return
		}
		if status, message := authorize(auth, r); status != http.StatusOK {
			http.Error(w, message, status)
			return
		}
		page.ServeHTTP(w, r)
	})
}

// authorize decides like upstream's filter (k8s.io/kubernetes/pkg/kubelet/server,
// InstallAuthFilter), which can only be used together with upstream's handlers.
func authorize(auth kubeletserver.AuthInterface, r *http.Request) (status int, message string) {
	client, ok, err := auth.AuthenticateRequest(r)
	if err != nil || !ok {
		return http.StatusUnauthorized, "Unauthorized"
	}
	for _, attributes := range auth.GetRequestAttributes(r.Context(), client.User, r) {
		decision, _, err := auth.Authorize(r.Context(), attributes)
		if err != nil {
			slog.Warn("cannot authorize a request for metrics", "component", "kubelet", "user", client.User.GetName(), "err", err)
			return http.StatusInternalServerError, "Authorization error"
		}
		if decision == authorizer.DecisionAllow {
			return http.StatusOK, ""
		}
	}
	return http.StatusForbidden, fmt.Sprintf("Forbidden (user=%s, path=%s): it needs the verb get on nodes/metrics",
		client.User.GetName(), r.URL.Path)
}
