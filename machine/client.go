package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
)

// ErrNotRunning is wrapped by the errors of operations that need a running mote when none runs.
var ErrNotRunning = errors.New("mote is not running")

// Status asks the running mote for its status. The error wraps ErrNotRunning if none runs.
func (m *Machine) Status(ctx context.Context) (Report, error) {
	path := m.StatusSocket()
	r, err := askStatus(ctx, path)
	if errors.Is(err, ErrNotRunning) {
		err = fmt.Errorf("%w (nobody answers on %s); start it with \"mote server\"", err, path)
	}
	return r, err
}

// askStatus asks the mote that listens on the socket path for its status.
func askStatus(ctx context.Context, path string) (Report, error) {
	var r Report
	var d net.Dialer
	ctx, cancel := context.WithTimeout(ctx, 2*statusTimeout)
	defer cancel()
	conn, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, os.ErrPermission) {
		return r, fmt.Errorf("ask mote: %w; run as root", err)
	}
	if err != nil {
		return r, ErrNotRunning
	}
	defer conn.Close()
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://mote/status", nil)
	if err != nil {
		return r, fmt.Errorf("ask mote: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return r, fmt.Errorf("ask mote: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return r, fmt.Errorf("read mote's answer: %s", response.Status)
	}
	if err := json.NewDecoder(response.Body).Decode(&r); err != nil {
		return r, fmt.Errorf("read mote's answer: %w", err)
	}
	return r, nil
}
