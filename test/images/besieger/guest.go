package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// guestPause is the time between two requests of one kind: the guest is a steady client and no
	// load.
	guestPause = 100 * time.Millisecond
	// guestTimeout is the time after which a request of the guest has failed. kubectl would wait
	// longer.
	guestTimeout = 10 * time.Second
	serviceToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	serviceCA    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
)

// latencies are the figures of one kind of request since the last reading.
type latencies struct {
	Requests int      `json:"requests"`
	Failed   int      `json:"failed"`
	P50      float64  `json:"p50"` // in milliseconds, of the requests that did not fail
	P99      float64  `json:"p99"`
	Errors   []string `json:"errors,omitempty"` // the first few
}

// sampler collects latencies. It is safe for concurrent use.
type sampler struct {
	mu     sync.Mutex
	took   []time.Duration // guarded by mu
	errors []error         // guarded by mu
}

func (s *sampler) add(took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.errors = append(s.errors, err)
		return
	}
	s.took = append(s.took, took)
}

// reset returns the collected latencies and starts again.
func (s *sampler) reset() latencies {
	s.mu.Lock()
	took, errs := s.took, s.errors
	s.took, s.errors = nil, nil
	s.mu.Unlock()
	l := latencies{Requests: len(took) + len(errs), Failed: len(errs)}
	for _, err := range errs[:min(3, len(errs))] {
		l.Errors = append(l.Errors, err.Error())
	}
	if len(took) > 0 {
		slices.Sort(took)
		at := func(share float64) float64 {
			return float64(took[int(share*float64(len(took)-1))].Microseconds()) / 1000
		}
		l.P50, l.P99 = at(0.5), at(0.99)
	}
	return l
}

// runGuest sends requests to the API, the cluster DNS and the Ingress at a steady pace, each on a
// new connection, as a new client would have to.
func runGuest(ctx context.Context, args []string) error {
	set := flag.NewFlagSet("guest", flag.ContinueOnError)
	api := set.String("api", "", "URL to read with the service account's token")
	resolver := set.String("dns", "", "address and port of the DNS server")
	web := set.String("web", "", "URL behind the Ingress")
	host := set.String("host", "", "HTTP Host for -web")
	if err := set.Parse(args); err != nil {
		return err
	}
	trusted, err := os.ReadFile(serviceCA)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(trusted)
	kinds := map[string]func(context.Context) error{
		"api": func(ctx context.Context) error { return fetch(ctx, *api, "", roots) },
		"dns": func(ctx context.Context) error { return resolve(ctx, *resolver) },
		"web": func(ctx context.Context) error { return fetch(ctx, *web, *host, nil) },
	}
	samplers := map[string]*sampler{}
	for name, ask := range kinds {
		s := &sampler{}
		samplers[name] = s
		go func() {
			for rest(ctx, guestPause) {
				start := time.Now()
				one, cancel := context.WithTimeout(ctx, guestTimeout)
				err := ask(one)
				cancel()
				if ctx.Err() == nil {
					s.add(time.Since(start), err)
				}
			}
		}()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/measure", func(w http.ResponseWriter, _ *http.Request) {
		all := map[string]latencies{}
		for name, s := range samplers {
			all[name] = s.reset()
		}
		_ = json.NewEncoder(w).Encode(all) // the test retries
	})
	return serve(ctx, ":9000", mux)
}

func fetch(ctx context.Context, url, host string, roots *x509.CertPool) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}, DialContext: (&net.Dialer{}).DialContext,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Host = host
	if roots != nil {
		token, err := os.ReadFile(serviceToken)
		if err != nil {
			return err
		}
		request.Header.Set("Authorization", "Bearer "+string(token))
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}

// resolve queries by UDP as libc does: it retries after two seconds, and again.
func resolve(ctx context.Context, server string) error {
	client := &dns.Client{Timeout: 2 * time.Second}
	question := new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA)
	var err error
	for range 3 {
		var answer *dns.Msg
		if answer, _, err = client.ExchangeContext(ctx, question, server); err == nil {
			if answer.Rcode == dns.RcodeSuccess && len(answer.Answer) > 0 {
				return nil
			}
			err = fmt.Errorf("DNS answered %s", dns.RcodeToString[answer.Rcode])
		}
	}
	return err
}
