package api

import (
	"context"
	"log/slog"
	"time"
)

const (
	// attempt is what is said about the work as a whole in `mote status`.
	attempt = "will be tried again"
	// lookAgain is between attempts at what failed, and looks at what nobody tells of: that a program has
	// stopped listening. Otherwise there is no timer.
	lookAgain = 15 * time.Second
	// restFactor is how many times as long as it took the work rests: what changes all the time costs a fifth of a
	// processor at most. restMax bounds it, as the work may have been waiting for the apiserver.
	restFactor = 4
	restMax    = time.Second
)

// Follow keeps what the cluster says in force until ctx ends: it calls sync at once, when something has changed, and
// from time to time while it fails or says that it waits for something. A failure is kept in troubles, and is in the log
// once. settled is called after the first time.
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

// pause is false when ctx ended meanwhile.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
