package machine

import (
	"fmt"
	"strconv"

	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/agent/payload"
	"github.com/mote-k8s/mote/internal/host"
	"github.com/mote-k8s/mote/internal/inotify"
)

// preflight returns an error for the first problem that keeps a node from running here, or else
// warnings about problems that limit it. It changes nothing.
func (m *Machine) preflight() (warnings []agent.Finding, err error) {
	if payload.Dir(m.payloadRoot()) == "" {
		return nil, payload.ErrAbsent
	}
	if err := checkNoReset(m.DataDir); err != nil {
		return nil, err
	}
	if pid, err := holderOf(m.DataDir); err != nil {
		return nil, err
	} else if pid != 0 {
		return nil, inUse(m.DataDir, strconv.Itoa(pid))
	}
	if err := m.checkArgFiles(); err != nil {
		return nil, err
	}
	if err := inotify.CheckInstances(); err != nil {
		return nil, err
	}
	listeners, err := host.Sockets()
	if err != nil {
		return nil, err
	}
	for _, p := range m.portsOf() {
		if err := checkPort(p, listeners); err != nil {
			return nil, err
		}
	}
	for _, f := range agent.Check(m.agentConfig()) {
		switch f.State {
		case agent.StateFail:
			return nil, fmt.Errorf("%s: %s; \"mote check\" shows all", f.Name, f.Message)
		case agent.StateWarn:
			warnings = append(warnings, f)
		}
	}
	return warnings, nil
}
