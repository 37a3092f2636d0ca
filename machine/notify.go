package machine

import (
	"log/slog"
	"net"
	"os"
)

// serviceManager sends notifications to the service manager by systemd's protocol: sd_notify(3).
type serviceManager struct{ socket string }

// newServiceManager removes the socket from the environment: a runc that inherited it would wait
// for each container to notify.
func newServiceManager(e Env) *serviceManager {
	m := &serviceManager{e.Getenv("NOTIFY_SOCKET")}
	if err := os.Unsetenv("NOTIFY_SOCKET"); err != nil {
		slog.Warn("NOTIFY_SOCKET stays set", "component", "mote", "err", err)
	}
	return m
}

func (m *serviceManager) ready()    { m.tell("READY=1") }
func (m *serviceManager) stopping() { m.tell("STOPPING=1") }

func (m *serviceManager) tell(state string) {
	if m.socket == "" {
		return
	}
	// systemd and Go both write an abstract socket with a leading @.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	if err == nil {
		defer conn.Close()
		_, err = conn.Write([]byte(state))
	}
	if err != nil {
		slog.Warn("cannot notify the service manager", "component", "mote", "state", state, "err", err)
	}
}
