package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Upstream exports no event for "ready", so Ready polls while a component starts: often enough to
// lose only a few milliseconds, rarely enough not to slow the start.
const (
	probeInterval    = 5 * time.Millisecond
	probeMaxInterval = 50 * time.Millisecond
	probeTimeout     = 5 * time.Second // for one request; the listener may be open before it answers
)

// waitHealthy polls url until it answers 200 and accept accepts the body. When ctx ends first, the
// error describes what is missing.
func waitHealthy(ctx context.Context, config *tls.Config, url string, accept func(body string) error) error {
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: probeTimeout}
	for interval := probeInterval; ; interval = min(interval*5/4, probeMaxInterval) {
		err := probe(ctx, client, url, accept)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-time.After(interval):
		}
	}
}

func probe(ctx context.Context, client *http.Client, url string, accept func(body string) error) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, failedChecks(string(body)))
	}
	return accept(string(body))
}

// failedChecks returns the failed checks in the answer of a Kubernetes health endpoint, whose lines
// are "[+]name ok" or "[-]name failed: reason withheld".
func failedChecks(body string) string {
	var failed []string
	for line := range strings.Lines(body) {
		if name, ok := strings.CutPrefix(line, "[-]"); ok {
			name, _, _ = strings.Cut(name, " ")
			failed = append(failed, name)
		}
	}
	if len(failed) == 0 {
		return strings.TrimSpace(body)
	}
	return "waiting for " + strings.Join(failed, ", ")
}

// passedChecks returns the names that a verbose answer of a health endpoint lists as ok.
func passedChecks(body string) []string {
	var passed []string
	for line := range strings.Lines(body) {
		if name, ok := strings.CutPrefix(line, "[+]"); ok {
			name, _, _ = strings.Cut(name, " ")
			passed = append(passed, name)
		}
	}
	return passed
}

func acceptAny(string) error { return nil }

// errStopped is the cause when an upstream component returns without an error before it was asked
// to stop.
var errStopped = errors.New("stopped by itself")
