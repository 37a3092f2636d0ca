package server

import (
	"context"
	"fmt"
	"time"

	apiserveroptions "k8s.io/apiserver/pkg/server/options"

	"github.com/mote-k8s/mote/internal/limit"
)

// handshakeTimeout bounds a client's TLS handshake, which takes two round trips. Upstream's own
// limit of 32 s also covers the request's header.
const handshakeTimeout = 20 * time.Second

// apiBudget returns the budget of kube-apiserver's port. An idle connection costs some 40 kB after
// its handshake, so foreign clients together take 160 MB at most, and one source 40 MB. HTTP/2 has
// all requests of a client on one connection; a load balancer in front of the API has room for a
// thousand clients.
func apiBudget() limit.Config {
	const name = "kube-apiserver"
	return limit.Config{
		Component: name, Name: name, Connections: 4096, PerAddress: 1024, Own: 4096,
		Start: handshakeTimeout, TLS: true, OwnSocket: true,
	}
}

// statusBudget returns the budget of a port with a component's health and metrics.
func statusBudget(name string) limit.Config {
	return limit.Config{
		Component: name, Name: name, Connections: 128, PerAddress: 32, Own: 128, Start: handshakeTimeout, TLS: true,
	}
}

// listen opens the port of a component in place of upstream, which would accept every connection.
// It leaves the port to upstream where the user's arguments share it with another process.
func (c Config) listen(ctx context.Context, serving *apiserveroptions.SecureServingOptions, budget limit.Config) (stop func(), err error) {
	if serving.PermitPortSharing || serving.PermitAddressSharing {
		return func() {}, nil
	}
	address := joinHostPort(serving.BindAddress.String(), serving.BindPort)
	listener, err := c.Budgets.Listen(ctx, address, budget)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w; stop what listens there", address, err)
	}
	serving.Listener = listener
	return func() { _ = listener.Close() }, nil
}
