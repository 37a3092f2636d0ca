package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-k8s/mote/addons/dns"
	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/agent/netcheck"
	"github.com/mote-k8s/mote/internal/dirlock"
	"github.com/mote-k8s/mote/internal/host"
	"github.com/mote-k8s/mote/internal/inotify"
	"github.com/mote-k8s/mote/machine/settings"
)

// Check checks everything that a start needs from this machine. It changes nothing.
func (m *Machine) Check() []agent.Finding {
	named, naming := m.checkNodeName()
	findings := append(agent.Check(named.agentConfig()), naming, m.checkDataDir(), m.checkInotify())
	return append(findings, m.checkPorts()...)
}

// checkNodeName finds the node's name and returns m with it.
func (m *Machine) checkNodeName() (*Machine, agent.Finding) {
	const name = "node-name"
	named, note, err := m.Named()
	if err != nil {
		return m, agent.Finding{Name: name, State: agent.StateFail, Message: err.Error()}
	}
	return named, agent.Finding{Name: name, State: agent.StateOK, Message: cmp.Or(note, "the node is called "+named.NodeName)}
}

// checkDataDir checks which process holds the data directory and whether the disk has the space
// that a first start needs.
func (m *Machine) checkDataDir() agent.Finding {
	const name = "data-dir"
	pid, err := holderOf(m.DataDir)
	switch {
	case err != nil:
		return agent.Finding{Name: name, State: agent.StateFail, Message: err.Error()}
	case pid != 0:
		return agent.Finding{Name: name, State: agent.StateWarn, Message: fmt.Sprintf("mote runs on %s (pid %d)", m.DataDir, pid)}
	}
	for _, check := range []func(string) error{checkNoReset, checkSpace} {
		if err := check(m.DataDir); err != nil {
			return agent.Finding{Name: name, State: agent.StateFail, Message: err.Error()}
		}
	}
	return agent.Finding{Name: name, State: agent.StateOK, Message: m.DataDir + " is free"}
}

// checkInotify checks whether the inotify limits leave enough for a start. A running mote has its
// share already.
func (m *Machine) checkInotify() agent.Finding {
	f := agent.Finding{Name: "inotify", State: agent.StateOK, Message: "there is enough for a cluster"}
	if pid, err := holderOf(m.DataDir); err == nil && pid != 0 {
		f.Message = "in use by the running mote"
	} else if err := inotify.CheckInstances(); err != nil {
		f.State, f.Message = agent.StateFail, err.Error()
	}
	if err := inotify.CheckWatches(); err != nil && f.State == agent.StateOK {
		f.State, f.Message = agent.StateWarn, err.Error()
	}
	return f
}

// checkPorts returns one finding for each port. A port that is in use while mote runs is no
// failure: the running mote has it.
func (m *Machine) checkPorts() []agent.Finding {
	listeners, err := host.Sockets()
	if err != nil {
		return []agent.Finding{{Name: "ports", State: agent.StateFail, Message: err.Error()}}
	}
	pid, _ := holderOf(m.DataDir) // checkDataDir reports its error
	var out []agent.Finding
	for _, p := range m.portsOf() {
		f := agent.Finding{Name: fmt.Sprintf("port %d", p.addr.Port()), State: agent.StateOK, Message: "free for " + p.who}
		if err := checkPort(p, listeners); err != nil && pid == 0 {
			f.State, f.Message = agent.StateFail, err.Error()
		} else if err != nil {
			f.Message = "in use by " + p.who
		}
		out = append(out, f)
	}
	return out
}

// CheckNetwork tests the running cluster's network as pods use it, with two small pods of its own.
func (m *Machine) CheckNetwork(ctx context.Context) ([]agent.Finding, error) {
	if m.env.Getenv("MOTE_SANDBOX") != "" {
		return nil, errors.New("cannot check the network of a cluster of \"mote run\": it is in namespaces of its own; check that of a \"mote server\"")
	}
	r, err := m.Status(ctx)
	if err != nil {
		return nil, err
	}
	unlock, err := lockNetworkCheck(filepath.Dir(m.StatusSocket()))
	if err != nil {
		return nil, err
	}
	defer unlock()
	// The settings of the running mote apply, not those that a new start would have.
	m = m.with(func(s *settings.Settings) {
		s.DataDir, s.CNI, s.ClusterCIDR, s.ClusterDomain = r.DataDir, r.Network.CNI, r.Network.ClusterCIDR, r.Network.ClusterDomain
	})
	access, err := clientcmd.BuildConfigFromFlags("", m.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	if err := m.BypassProxy(access.Host); err != nil {
		return nil, err
	}
	findings := agent.CheckNetwork(ctx, m.agentConfig())
	tried, err := netcheck.Run(ctx, netcheck.Config{
		Access:        access,
		CRISocket:     m.ContainerdSocket(),
		NodeName:      r.Node.Name,
		ClusterDNS:    r.Network.ClusterDNS,
		ClusterDomain: r.Network.ClusterDomain,
		OwnDNS:        r.runs(dns.Name),
		OwnProxy:      r.runs("kube-proxy"),
	})
	if err != nil {
		return nil, err
	}
	return append(findings, tried...), nil
}

// lockNetworkCheck keeps two checks from removing each other's pods. The lock is on a directory
// that exists anyway, and ends with the process.
func lockNetworkCheck(dir string) (unlock func(), err error) {
	unlock, err = dirlock.TryLock(dir)
	if errors.Is(err, dirlock.ErrLocked) {
		err = errors.New("another \"mote check net\" runs; wait for its end")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot check the network: %w", err)
	}
	return unlock, nil
}
