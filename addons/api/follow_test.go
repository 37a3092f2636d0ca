package api

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestFollow checks when the work is done, on a simulated clock.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		changed, change := Changes()
		var troubles Troubles
		var at []time.Duration
		began, settled := time.Now(), 0
		outcome := func() (bool, error) { return false, nil }
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			Follow(ctx, "test", &troubles, changed, func() { settled++ }, func(context.Context) (bool, error) {
				at = append(at, time.Since(began))
				time.Sleep(100 * time.Millisecond)
				return outcome()
			})
		}()
		// A burst of changes causes one run at the beginning and one after the rest.
		for range 10 {
			change()
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Hour)
		if want := []time.Duration{0, 500 * time.Millisecond}; !slices.Equal(at, want) {
			t.Errorf("done at %v, want %v", at, want)
		}
		at, outcome = nil, func() (bool, error) { return false, errors.New("no") }
		began = time.Now()
		change()
		time.Sleep(20 * time.Second)
		if len(at) != 2 || !slices.Equal(troubles.Trouble(), []string{attempt + ": no"}) {
			t.Errorf("after a failure: done at %v, trouble %q", at, troubles.Trouble())
		}
		at, outcome = nil, func() (bool, error) { return true, nil }
		time.Sleep(time.Minute)
		if len(at) < 3 || len(troubles.Trouble()) != 0 {
			t.Errorf("while it waits for something: done at %v, trouble %q", at, troubles.Trouble())
		}
		cancel()
		<-ended
		if settled != 1 {
			t.Errorf("settled %d times", settled)
		}
	})
}
