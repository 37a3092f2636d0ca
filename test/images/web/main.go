// Command web is a tiny HTTP server for the tests: / answers the pod's name, /healthz "ok", /client
// the caller's address. It logs each request to stdout and ends on SIGTERM. On the same port it
// sends back each UDP packet; `web udp ADDRESS TEXT` sends a packet to such a server and prints the
// answer. `web fetch URL` is a client: it prints the answer's body. (busybox has a client, but that
// of Debian's static build crashes in libc if there is no resolver.)
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const timeout = 10 * time.Second

func main() {
	err := error(nil)
	switch {
	case len(os.Args) == 3 && os.Args[1] == "fetch":
		err = fetch(os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == "udp":
		err = ask(os.Args[2], os.Args[3])
	default:
		err = serve()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "web:", err)
		os.Exit(1)
	}
}

func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("request", r.Method, r.URL.Path)
		fmt.Fprintln(w, hostname)
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/client", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	srv := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: timeout}
	go func() {
		<-ctx.Done()
		_ = srv.Close()
	}()
	packets, err := net.ListenPacket("udp", srv.Addr)
	if err != nil {
		return err
	}
	defer packets.Close()
	go echo(packets)
	fmt.Println("web: serving on", srv.Addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// echo sends each packet back until the socket is closed.
func echo(packets net.PacketConn) {
	buffer := make([]byte, 64<<10)
	for {
		n, from, err := packets.ReadFrom(buffer)
		if err != nil {
			return
		}
		_, _ = packets.WriteTo(buffer[:n], from) // UDP may lose packets
	}
}

func ask(address, text string) error {
	conn, err := net.DialTimeout("udp", address, timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(text)); err != nil {
		return err
	}
	answer := make([]byte, 64<<10)
	n, err := conn.Read(answer)
	if err != nil {
		return err
	}
	fmt.Println(string(answer[:n]))
	return nil
}

func fetch(url string) error {
	// The answer identifies the server; the test's pods have no certificate authority.
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", url, resp.Status)
	}
	return nil
}
