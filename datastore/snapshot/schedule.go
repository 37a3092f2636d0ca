package snapshot

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Timetable returns when the next snapshot after a given time is due, as cron schedules do.
type Timetable interface {
	Next(after time.Time) time.Time
}

const (
	// settle is the time from the start of the process to an overdue snapshot. By then the start
	// has finished, and a machine that sets its clock from a network has done so.
	settle = 5 * time.Minute
	// doubt is the time from the start to a snapshot if the clock is before the newest snapshot and
	// so cannot show whether one is due. A machine without a clock may never be up for as long as
	// the timetable wants, and one that restarts often must not save at each start.
	doubt = time.Hour
	// slack is the largest time that the clock may be behind the due time when the wait ends,
	// because the clock is being adjusted.
	slack = time.Minute
)

// Schedule saves and prunes snapshots by a timetable. It is a component.Component. No error of a
// snapshot ends it, because the cluster is more important.
type Schedule struct {
	Folder Folder
	Source Source
	Origin Origin
	Timetable
	// Keep is the number of snapshots that Prune keeps, at least 1.
	Keep int
}

// Name implements component.Component.
func (*Schedule) Name() string { return "snapshots" }

// Ready implements component.Component: no other component waits for a snapshot.
func (*Schedule) Ready(context.Context) error { return nil }

// Run implements component.Component. It reads the wall clock only to compute the wait, and sleeps
// on the monotonic clock. So setting the clock during a wait makes the next snapshot early or late
// by at most one round of the timetable.
func (s *Schedule) Run(ctx context.Context) error {
	if !sleep(ctx, settle) {
		return nil
	}
	wait := time.Duration(0)
	if !s.overdue(time.Now()) {
		wait = s.untilNext(time.Now())
		if s.inDoubt(time.Now()) {
			wait = min(wait, doubt-settle)
		}
	}
	for sleep(ctx, wait) {
		s.save(ctx)
		wait = s.untilNext(time.Now())
	}
	return nil
}

// overdue reports whether a snapshot was missed while the machine was off, or there is no snapshot
// at all.
func (s *Schedule) overdue(now time.Time) bool {
	last, ok := s.last()
	return !ok || !s.Next(last.Time).After(now)
}

func (s *Schedule) inDoubt(now time.Time) bool {
	last, ok := s.last()
	return ok && now.Before(last.Time)
}

// last returns the newest snapshot of this cluster that can be read.
func (s *Schedule) last() (Snapshot, bool) {
	list, err := s.Folder.List()
	if err != nil {
		return Snapshot{}, false // the next save reports the error
	}
	cluster, err := Fingerprint(s.Origin.ServerDir)
	if err != nil {
		return Snapshot{}, false
	}
	for _, one := range list {
		if one.Err == nil && one.Cluster == cluster {
			return one, true
		}
	}
	return Snapshot{}, false
}

// untilNext returns the wait until the next time of the timetable. It skips a time that is less
// than slack away.
func (s *Schedule) untilNext(now time.Time) time.Duration {
	next := s.Next(now)
	if next.Sub(now) < slack {
		if later := s.Next(next); !later.IsZero() && later.Sub(next) > slack {
			next = later
		}
	}
	if next.IsZero() { // a timetable such as the 30th of February
		return 1<<63 - 1
	}
	return next.Sub(now)
}

func (s *Schedule) save(ctx context.Context) {
	log := slog.With("component", s.Name())
	start := time.Now()
	saved, err := s.Folder.Save(ctx, "", s.Source, s.Origin, nil)
	switch {
	case ctx.Err() != nil:
		return
	case errors.Is(err, ErrUnserved):
		log.Warn("no snapshots are taken", "err", err)
		<-ctx.Done()
		return
	case errors.Is(err, ErrNoRoom):
		log.Warn("snapshot skipped, the disk is short of room; the older ones stay", "err", err)
		return
	case err != nil:
		log.Error("snapshot not saved; the older ones stay", "err", err)
		return
	}
	log.Info("snapshot saved", "name", saved.Name, "revision", saved.Revision, "bytes", saved.Size,
		"took", time.Since(start).Round(time.Millisecond))
	if _, err := s.Folder.Prune(ctx, s.Keep, saved.Cluster); err != nil && ctx.Err() == nil {
		log.Error("old snapshots not pruned", "err", err)
	}
}

// sleep returns false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
