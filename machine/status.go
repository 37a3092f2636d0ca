package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/mote-k8s/mote/datastore/bolt/rescue"
	"github.com/mote-k8s/mote/internal/component"
	"github.com/mote-k8s/mote/internal/version"
)

// statusTimeout bounds one request on the status socket, which stays on one machine. Most of the
// time is for the node's state, which an apiserver under load may return slowly.
const statusTimeout = 3 * time.Second

// Report is the JSON document that a running mote serves at /status on its status socket.
type Report struct {
	Version    version.Info       `json:"version"`
	PID        int                `json:"pid"`
	Started    time.Time          `json:"started"`
	DataDir    string             `json:"dataDir"`
	Ready      bool               `json:"ready"`
	Node       NodeState          `json:"node"`
	Components []component.Status `json:"components"`
	Network    NetworkSettings    `json:"network"`
	Overview   Overview           `json:"overview"`
	// NameNote explains why the node's name differs from its host's.
	NameNote string `json:"nameNote,omitempty"`
	// Repairs lists the repairs of the datastore by this start, and earlier ones, by starts or
	// verbs, that no server has reported yet.
	Repairs []rescue.Repair `json:"repairs,omitempty"`
}

// NetworkSettings are the network settings of the running mote, which its flags may have set.
type NetworkSettings struct {
	CNI           string       `json:"cni"`
	ClusterCIDR   netip.Prefix `json:"clusterCIDR"`
	ClusterDNS    netip.Addr   `json:"clusterDNS"`
	ClusterDomain string       `json:"clusterDomain"`
}

// runs reports whether the running mote has a component of that name.
func (r Report) runs(name string) bool {
	return slices.ContainsFunc(r.Components, func(c component.Status) bool { return c.Name == name })
}

// makeReport returns the report for "mote status".
func (m *Machine) makeReport(ctx context.Context, p *parts) Report {
	r := Report{
		Version:    version.Get(),
		PID:        os.Getpid(),
		Started:    p.started,
		DataDir:    m.DataDir,
		Components: p.group.Status(),
		Repairs:    p.store.Repairs(),
		Network:    NetworkSettings{m.CNI, m.ClusterCIDR, m.ClusterDNS, m.ClusterDomain},
		NameNote:   p.nameNote,
		Ready:      true,
	}
	for i, c := range r.Components {
		r.Components[i].Trouble = append(c.Trouble, p.budgets.Trouble(c.Name)...)
		r.Ready = r.Ready && c.State == component.Ready
	}
	var asked sync.WaitGroup // two requests to the API, each of which may have to wait
	asked.Go(func() { r.Node = p.watch.state(ctx) })
	r.Overview = m.makeOverview(ctx, p.watch)
	asked.Wait()
	r.Ready = r.Ready && r.Node.Ready
	return r
}

// statusServer serves HTTP on the status socket: GET /status returns a Report, and /debug/pprof/
// returns the profiles of this process.
type statusServer struct {
	listener net.Listener
	report   func(ctx context.Context) Report
}

// listenStatus creates the socket, mode 0600, and replaces one that a killed mote left. The lock of
// the data directory has already shown that no other mote uses it.
func listenStatus(path string, tell func(ctx context.Context) Report) (*statusServer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old status socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("make status socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect status socket: %w", err), l.Close())
	}
	return &statusServer{l, tell}, nil
}

// serve answers requests until ctx ends. That also ends the recording of a profile.
func (s *statusServer) serve(ctx context.Context) {
	server := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: statusTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusTimeout)
		defer cancel()
		if server.Shutdown(last) != nil {
			server.Close()
		}
	})
	if err := server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		slog.Error("status socket ended", "component", "mote", "err", err)
	}
	if !stop() {
		<-stopped
	}
}

// handler serves the profiles besides the status. They are available only here: every port of the
// cluster has them switched off.
func (s *statusServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), statusTimeout)
		defer cancel()
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(s.report(ctx)); err != nil {
			slog.Debug("status not delivered", "component", "mote", "err", err)
		}
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index) // also serves heap, goroutine and the others by name
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	return mux
}
