package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/kubelet"
	kubeletserver "k8s.io/kubernetes/pkg/kubelet/server"
	"k8s.io/kubernetes/pkg/kubelet/server/stats"

	"github.com/mote-k8s/mote/internal/limit"
)

const (
	// streamTimeout is upstream's timeout for requests and answers. It is long because exec and
	// logs are.
	streamTimeout = 4 * time.Hour
	// headerTimeout is the timeout for the TLS handshake and the header of a request, as in
	// kube-apiserver. Upstream's kubelet has none.
	headerTimeout = 32 * time.Second
	// idleTimeout and maxHeader have upstream's values.
	idleTimeout = 90 * time.Second
	maxHeader   = 1 << 20
	// startTimeout is the timeout for a client's TLS handshake.
	startTimeout = 20 * time.Second
)

// kubeletBudget returns the budget of the kubelet's port. Clients from outside are programs that
// read metrics. Logs, exec and port-forward come from the apiserver, each with a connection of its
// own, and count as connections of this machine.
func kubeletBudget() limit.Config {
	return limit.Config{
		Component: "kubelet", Name: "kubelet", Connections: 1024, PerAddress: 256, Own: 4096, Start: startTimeout, TLS: true,
	}
}

// kubeletServer serves the kubelet's API in place of upstream's server, which has no limits and
// accepts no listener. Handlers, authentication and authorization are upstream's.
type kubeletServer struct {
	listener *limit.Listener // nil if the arguments switch the server off
	made     chan func(context.Context) http.Handler
	http     *http.Server
}

// takeServer opens the kubelet's port and keeps upstream from opening it. The node's status still
// names the port.
func takeServer(ctx context.Context, c Config, server *options.KubeletServer, deps *kubelet.Dependencies) (*kubeletServer, error) {
	k := &kubeletServer{made: make(chan func(context.Context) http.Handler, 1)}
	if !server.EnableServer {
		return k, nil
	}
	address := net.JoinHostPort(server.Address, strconv.Itoa(int(server.Port)))
	listener, err := c.Budgets.Listen(ctx, address, kubeletBudget())
	if err != nil {
		return nil, cannotListen(address, "the kubelet", err)
	}
	k.listener = listener
	server.EnableServer = false
	config := server.KubeletConfiguration
	// The kubelet's constructor calls the options when the dependencies are complete. An option is
	// the only way to get the constructed kubelet.
	deps.Options = append(deps.Options, func(made *kubelet.Kubelet) {
		k.http = &http.Server{
			TLSConfig:   deps.TLSConfig.Clone(),
			ReadTimeout: streamTimeout, WriteTimeout: streamTimeout, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
			MaxHeaderBytes: maxHeader,
			// Any client from outside can cause these errors.
			ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
		}
		k.made <- func(ctx context.Context) http.Handler {
			// This analyzer is not started. The statistics of volumes come from the kubelet's own
			// analyzer, through its statistics of pods.
			analyzer := stats.NewResourceAnalyzer(ctx, made, 0, deps.Recorder)
			handler := kubeletserver.NewServer(ctx, made, analyzer, deps.ContainerManager.GetHealthCheckers(), deps.Flagz, deps.Auth, &config)
			handler.InstallTracingFilter(deps.TracerProvider)
			return ownMetrics(deps.Auth, &handler)
		}
	})
	return k, nil
}

// serve serves until close. It must be called when the kubelet runs, with the kubelet's ctx.
func (k *kubeletServer) serve(ctx context.Context) error {
	if k.listener == nil {
		return nil
	}
	select {
	case handler := <-k.made:
		k.http.Handler = handler(ctx)
	case <-ctx.Done():
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = k.http.Close() })
	defer stop()
	if err := k.http.ServeTLS(k.listener, "", ""); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve the kubelet's API on %s: %w", k.listener.Addr(), err)
	}
	return nil
}

func (k *kubeletServer) close() {
	if k.listener != nil {
		_ = k.listener.Close()
	}
}

func cannotListen(address, who string, err error) error {
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return fmt.Errorf("cannot listen on %s for %s: no interface has this address; set another --node-ip", address, who)
	}
	return fmt.Errorf("cannot listen on %s for %s: %w; stop what listens there", address, who, err)
}
