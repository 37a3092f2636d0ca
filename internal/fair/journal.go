package fair

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

const (
	// logInterval is the minimum time between two log lines of one gate.
	logInterval = time.Minute
	// recent is the time for which Trouble shows a refusal.
	recent = 2 * time.Minute
)

// journal records the refusals. The gate's mutex guards it.
type journal struct {
	total, logged uint64 // refusals: all, and those that the log has
	at, loggedAt  time.Time
	from          netip.Addr // source of the last refusal
}

func (j *journal) refused(c Config, from netip.Addr) {
	j.total++
	j.at, j.from = time.Now(), from
	if j.at.Sub(j.loggedAt) < logInterval {
		return
	}
	slog.Warn("refused because of too much at once", "component", c.Component, "refused", c.Work,
		"count", j.total-j.logged, "last", describe(from))
	j.logged, j.loggedAt = j.total, j.at
}

func (j *journal) trouble(c Config) string {
	if j.total == 0 || time.Since(j.at) > recent {
		return ""
	}
	return fmt.Sprintf("%d %s refused because too many were under way, the last from %s", j.total, c.Work, describe(j.from))
}

func describe(from netip.Addr) string {
	if !from.IsValid() {
		return "this machine"
	}
	return from.String()
}
