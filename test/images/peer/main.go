// Command peer is one end of the network tests. `peer serve tcp/PORT... udp/PORT...` echoes on
// these ports and serves commands on port 9000, which the node always reaches:
// /try?network=tcp&address=A:P&within=1s connects from here and answers "reached" or the error
// (network=dns resolves the address), /hold?address=A:P opens a TCP connection that /held uses
// again, /fetch?url=U gets a page, /client answers the caller's address, /healthz "ok" and /probed
// the number of requests for /healthz.
//
// `peer first NETWORK ADDRESS` connects as its first act, and retries for two seconds. It prints
// one line, "reached after N ms" or "never reached", and waits to be ended.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const control = ":9000"

func main() {
	err := errors.New("usage: peer serve NETWORK/PORT... | peer first NETWORK ADDRESS")
	switch {
	case len(os.Args) == 4 && os.Args[1] == "first":
		fmt.Println(first(os.Args[2], os.Args[3]))
		err = serve(nil)
	case len(os.Args) > 1 && os.Args[1] == "serve":
		err = serve(os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func first(network, address string) string {
	const tries, within = 20, 100 * time.Millisecond
	start := time.Now()
	for i := range tries {
		if err := try(network, address, within); err == nil {
			return fmt.Sprintf("reached after %d ms", time.Since(start).Milliseconds())
		}
		time.Sleep(time.Until(start.Add(time.Duration(i+1) * within)))
	}
	return "never reached"
}

func serve(ports []string) error {
	for _, port := range ports {
		network, number, _ := strings.Cut(port, "/")
		if network == "udp" {
			conn, err := net.ListenPacket("udp", ":"+number)
			if err != nil {
				return err
			}
			go echoPackets(conn)
			continue
		}
		listener, err := net.Listen("tcp", ":"+number)
		if err != nil {
			return err
		}
		go echoConnections(listener)
	}
	var held holder
	mux := http.NewServeMux()
	var probed atomic.Int64
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { probed.Add(1); fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/probed", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, probed.Load()) })
	mux.HandleFunc("/try", func(w http.ResponseWriter, r *http.Request) {
		within, err := time.ParseDuration(r.FormValue("within"))
		if err == nil {
			err = try(r.FormValue("network"), r.FormValue("address"), within)
		}
		answer(w, err)
	})
	mux.HandleFunc("/client", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintln(w, host)
	})
	mux.HandleFunc("/fetch", func(w http.ResponseWriter, r *http.Request) {
		client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Get(r.FormValue("url"))
		if err != nil {
			fmt.Fprintln(w, err)
			return
		}
		defer response.Body.Close()
		_, _ = io.Copy(w, response.Body)
	})
	mux.HandleFunc("/hold", func(w http.ResponseWriter, r *http.Request) { answer(w, held.open(r.FormValue("address"))) })
	mux.HandleFunc("/held", func(w http.ResponseWriter, _ *http.Request) { answer(w, held.use()) })
	server := &http.Server{Addr: control, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServe()
}

func answer(w io.Writer, err error) {
	if err != nil {
		fmt.Fprintln(w, err)
		return
	}
	fmt.Fprintln(w, "reached")
}

func try(network, address string, within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if network == "dns" {
		_, err := net.DefaultResolver.LookupHost(ctx, address)
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	return ping(conn, within)
}

func ping(conn net.Conn, within time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 5))
	return err
}

// holder keeps a connection.
type holder struct {
	mu   sync.Mutex
	conn net.Conn
}

func (h *holder) open(address string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var err error
	h.conn, err = net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	return ping(h.conn, time.Second)
}

func (h *holder) use() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn == nil {
		return errors.New("nothing is held")
	}
	return ping(h.conn, 300*time.Millisecond)
}

func echoPackets(conn net.PacketConn) {
	buffer := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		_, _ = conn.WriteTo(buffer[:n], from)
	}
}

func echoConnections(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() { defer conn.Close(); _, _ = io.Copy(conn, conn) }()
	}
}
