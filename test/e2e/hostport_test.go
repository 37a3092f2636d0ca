package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
	"github.com/mote-k8s/mote/test/images"
)

// echoPod answers UDP packets to port 8080 of the node, with a host port or, if network is
// "hostNetwork: true", without one.
const echoPod = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  %s
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: %q, ports: [{containerPort: 8080, hostPort: 8080, protocol: UDP}]}
`

// testHostPortMoves sends without a pause to a UDP port of the node, which moves from a pod with a
// host port to one on the host's network. By itself, the kernel would continue to translate the
// packets of this sender (containernetworking/plugins#1190).
func testHostPortMoves(t *testing.T, h *cluster.Host) {
	features.Row(t, "D8", "a UDP host port that moves to the host's network keeps its senders")
	start := func(name, network string) {
		h.Apply(t, fmt.Sprintf(echoPod, name, network, images.WebName))
		h.Kubectl(t, "wait", "--for=condition=Ready", "pod/"+name, "--timeout="+podTimeout.String())
	}
	start("with-port", "hostNetwork: false")
	conn, err := h.Dial(t.Context(), "udp", net.JoinHostPort(nodeIP, "8080"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := make(chan time.Time, 1)
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		send(conn, answers)
	}()
	defer func() { conn.Close(); <-sending }()
	answered := func(what string) {
		t.Helper()
		since := time.Now()
		cluster.Wait(t, podTimeout, what, func() error {
			select {
			case at := <-answers:
				if at.After(since) {
					return nil
				}
			default:
			}
			return errors.New("no answer")
		})
	}
	answered("an answer of the pod with the host port")
	h.Kubectl(t, "delete", "pod/with-port")
	start("of-host", "hostNetwork: true")
	answered("an answer of the pod of the host's network to the same sender")
	h.Kubectl(t, "delete", "pod/of-host", "--now")
}

// send sends a packet as soon as the last one is answered, or lost, until the connection is closed.
// answers holds the time of the latest answer.
func send(conn net.Conn, answers chan time.Time) {
	buffer := make([]byte, 100)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := conn.Write([]byte(strings.Repeat("x", 10))); errors.Is(err, net.ErrClosed) {
			return
		}
		if _, err := conn.Read(buffer); err != nil {
			continue // lost, or refused while nothing listens
		}
		select {
		case <-answers:
		default:
		}
		answers <- time.Now()
	}
}
