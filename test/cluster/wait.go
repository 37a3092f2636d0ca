package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// pollInterval is the time between two checks of a condition that has no notification.
const pollInterval = 100 * time.Millisecond

// Wait checks a condition until it returns nil. After the timeout the test fails with what, which
// names the condition, and the condition's last error.
func Wait(t testing.TB, timeout time.Duration, what string, condition func() error) {
	t.Helper()
	if err := poll(t.Context(), timeout, condition); err != nil {
		t.Fatalf("waited %v for %s: %v", timeout, what, err)
	}
}

func poll(ctx context.Context, timeout time.Duration, condition func() error) error {
	deadline := time.After(timeout)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return err
		case <-ctx.Done():
			return fmt.Errorf("the test ended: %w", err)
		}
	}
}
