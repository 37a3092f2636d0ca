// Command guestbook is the front end of the guestbook tutorial: it writes to the Redis leader and
// reads from a follower. It finds them by their Services' names, or with GET_HOSTS_FROM=env by the
// variables that Services put into a pod's environment.
//
//	GET /                        a page
//	GET /set?value=TEXT          appends an entry
//	GET /get                     all entries, one a line
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	list    = "guestbook"
	timeout = 5 * time.Second
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "guestbook:", err)
		os.Exit(1)
	}
}

func serve() error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "<html><title>Guestbook</title></html>") })
	mux.HandleFunc("GET /set", func(w http.ResponseWriter, r *http.Request) {
		answer(w, "redis-leader", "RPUSH", list, r.URL.Query().Get("value"))
	})
	mux.HandleFunc("GET /get", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, "redis-follower", "LRANGE", list, "0", "-1")
	})
	srv := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: timeout}
	return srv.ListenAndServe()
}

func answer(w http.ResponseWriter, service string, command ...string) {
	lines, err := ask(hostOf(service), command...)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	fmt.Fprintln(w, strings.Join(lines, "\n"))
}

func hostOf(service string) string {
	if os.Getenv("GET_HOSTS_FROM") != "env" {
		return service
	}
	return os.Getenv(strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + "_SERVICE_HOST")
}

// ask sends one command: https://redis.io/docs/latest/develop/reference/protocol-spec/
func ask(host string, command ...string) ([]string, error) {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(host, "6379"), timeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(command))
	for _, word := range command {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(word), word)
	}
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return nil, err
	}
	return read(bufio.NewReader(conn))
}

// read reads one reply: a status, an error, a number, a text or a list of them.
func read(r *bufio.Reader) ([]string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("read the reply of redis: %w", err)
	}
	kind, rest := line[0], strings.TrimSpace(line[1:])
	if kind == '+' || kind == ':' {
		return []string{rest}, nil
	}
	if kind == '-' {
		return nil, errors.New("redis: " + rest)
	}
	n, err := strconv.Atoi(rest)
	if err != nil {
		return nil, fmt.Errorf("the reply of redis begins %q: %w", line, err)
	}
	if kind == '$' {
		text := make([]byte, n+len("\r\n"))
		_, err := io.ReadFull(r, text)
		return []string{string(text[:n])}, err
	}
	var all []string
	for range n {
		item, err := read(r)
		if err != nil {
			return nil, err
		}
		all = append(all, item...)
	}
	return all, nil
}
