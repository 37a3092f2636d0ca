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

// Upstream exports no event for "ready", so Ready asks again and again while a component starts:
// often enough to lose a few milliseconds only, rarely enough not to slow the start.
const (
	probeInterval    = 5 * time.Millisecond
	probeMaxInterval = 50 * time.Millisecond
	probeTimeout     = 5 * time.Second // for one question; the listener may be open before it answers
)

// waitHealthy asks url until it answers 200 and body satisfies accept. When ctx ends first, the error
// says what is missing.
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

// failedChecks finds what is wrong in the answer of a Kubernetes health endpoint, whose lines are
// "[+]name ok" or "[-]name failed: reason withheld".
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

// passedChecks finds the names that a verbose answer of a health endpoint lists as ok.
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

// errStopped is the cause when an upstream component returns without an error though nobody asked
// it to stop.
var errStopped = errors.New("stopped by itself")
