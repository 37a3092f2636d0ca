package api

import (
	"context"
	"log/slog"
	"time"
)

const (
	// attempt is the subject in `mote status` for a report on the work as a whole.
	attempt = "will be tried again"
	// lookAgain is the interval of attempts after a failure, and of checks for changes without a
	// notification, such as a program that has stopped listening. In other cases there is no timer.
	lookAgain = 15 * time.Second
	// restFactor is the ratio of the rest after the work to the time that the work took. So
	// constant changes cost at most a fifth of a processor. restMax limits the rest, because the
	// work may have waited for the apiserver.
	restFactor = 4
	restMax    = time.Second
)

// Follow applies the state of the cluster until ctx ends. It calls sync at once, after each change,
// and at intervals while sync fails or reports that it waits. A failure is recorded in troubles and
// logged once. settled is called after the first sync.
func Follow(
	ctx context.Context, addon string, troubles *Troubles, changed <-chan struct{}, settled func(), sync func(context.Context) (waiting bool, err error),
) {
	for first := true; ; first = false {
		began := time.Now()
		waiting, err := sync(ctx)
		if ctx.Err() != nil {
			return
		}
		problem := ""
		if err != nil {
			problem = err.Error()
		}
		if troubles.Note(attempt, problem) && err != nil {
			slog.Warn(attempt, "component", addon, "err", err)
		}
		if first {
			settled()
		}
		var again <-chan time.Time
		if waiting || err != nil {
			again = time.After(lookAgain)
		}
		if !pause(ctx, min(restFactor*time.Since(began), restMax)) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
		}
	}
}

// pause waits for d. It returns false if ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
