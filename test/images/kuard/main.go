// Command kuard stands in for the demonstration server of a book's chapter on pods. It serves
// /healthy and /ready, which can be made to fail, the files of its container below /fs/, its
// environment and command line, memory that it allocates on request, and DNS queries.
//
//	GET    /healthy, /ready            200 ok, or 500 if it was made to fail
//	PUT    /healthy/api, /ready/api    {"failNext": N}: the next N answers fail; -1: all; 0: none
//	GET    /env/api                    {"commandLine": [...], "env": {...}}
//	GET    /mem/api                    {"held": BYTES}
//	POST   /mem/api/alloc?size=BYTES   allocates memory; POST /mem/api/clear frees it
//	POST   /dns/api                    {"type": "A", "name": "kubernetes"}: {"result": "..."}
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

const (
	address    = ":8080"
	dnsTimeout = 5 * time.Second
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "kuard:", err)
		os.Exit(1)
	}
}

func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	srv := &http.Server{Addr: address, Handler: logged(routes()), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		_ = srv.Close()
	}()
	slog.Info("serving", "address", address)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func routes() *http.ServeMux {
	mux := http.NewServeMux()
	for _, name := range []string{"/healthy", "/ready"} {
		p := &probe{}
		mux.HandleFunc("GET "+name, p.answer)
		mux.HandleFunc("PUT "+name+"/api", p.configure)
	}
	m := &memory{}
	mux.HandleFunc("GET /mem/api", m.show)
	mux.HandleFunc("POST /mem/api/alloc", m.take)
	mux.HandleFunc("POST /mem/api/clear", m.clear)
	mux.HandleFunc("GET /env/api", environment)
	mux.HandleFunc("POST /dns/api", lookup)
	mux.Handle("GET /fs/", http.StripPrefix("/fs/", http.FileServer(http.Dir("/"))))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		hostname, _ := os.Hostname() // an empty name is shown as it is
		fmt.Fprintf(w, "<html><title>KUAR Demo</title>%s, asked by %s</html>\n", hostname, r.RemoteAddr)
	})
	return mux
}

func logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		slog.Info("request", "method", r.Method, "path", r.URL.Path, "from", r.RemoteAddr)
		next.ServeHTTP(w, r)
	})
}

// probe answers health checks with success until it is made to fail.
type probe struct {
	mu       sync.Mutex // guards failNext
	failNext int
}

func (p *probe) answer(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failNext == 0 {
		fmt.Fprintln(w, "ok")
		return
	}
	if p.failNext > 0 {
		p.failNext--
	}
	http.Error(w, "told to fail", http.StatusInternalServerError)
}

func (p *probe) configure(w http.ResponseWriter, r *http.Request) {
	var told struct {
		FailNext int `json:"failNext"`
	}
	if err := json.NewDecoder(r.Body).Decode(&told); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failNext = told.FailNext
}

// memory is the memory that the server holds on request.
type memory struct {
	mu   sync.Mutex // guards held
	held [][]byte
}

func (m *memory) show(w http.ResponseWriter, _ *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	total := 0
	for _, b := range m.held {
		total += len(b)
	}
	writeJSON(w, map[string]int{"held": total})
}

func (m *memory) take(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.Atoi(r.URL.Query().Get("size"))
	if err != nil || size < 0 {
		http.Error(w, "size is a number of bytes", http.StatusBadRequest)
		return
	}
	b := make([]byte, size)
	// The kernel allocates a page only when it is written.
	for i := 0; i < size; i += 4096 {
		b[i] = 1
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = append(m.held, b)
}

func (m *memory) clear(http.ResponseWriter, *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = nil
}

func environment(w http.ResponseWriter, _ *http.Request) {
	env := map[string]string{}
	for _, entry := range os.Environ() {
		key, value, _ := strings.Cut(entry, "=")
		env[key] = value
	}
	writeJSON(w, map[string]any{"commandLine": os.Args, "env": env})
}

// lookup queries the container's own name server, along its search path.
func lookup(w http.ResponseWriter, r *http.Request) {
	var question struct {
		Type string `json:"type"`
		Name string `json:"name"`
	}
	if err := json.NewDecoder(r.Body).Decode(&question); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil || len(config.Servers) == 0 {
		http.Error(w, fmt.Sprintf("no name server: %v", err), http.StatusInternalServerError)
		return
	}
	client := &dns.Client{Timeout: dnsTimeout}
	for _, name := range config.NameList(question.Name) {
		answer, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, dns.StringToType[question.Type]), config.Servers[0]+":"+config.Port)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if answer.Rcode == dns.RcodeSuccess {
			writeJSON(w, map[string]string{"result": answer.String()})
			return
		}
	}
	http.Error(w, "no such name", http.StatusNotFound)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		slog.Warn("answer was not sent", "error", err)
	}
}
