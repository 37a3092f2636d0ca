package snapshot

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Timetable says when a snapshot is due next after a time, as cron's schedules do.
type Timetable interface {
	Next(after time.Time) time.Time
}

const (
	// settle is how long after the start of the process one is taken that is due: the start is over by then,
	// and a machine that gets its clock from a network has it.
	settle = 5 * time.Minute
	// doubt is how long after it one is taken if the clock cannot tell whether it is due, because it
	// stands before the newest snapshot: a machine without a clock may never be up for as long as the
	// timetable wants, and one that restarts all the time must not save each time.
	doubt = time.Hour
	// slack is by how much the clock may be behind at the time for which it was waited: it is being adjusted.
	slack = time.Minute
)

// Schedule saves and prunes snapshots by a timetable. It is a component.Component. Nothing that goes wrong with a
// snapshot ends it: the cluster is worth more.
type Schedule struct {
	Folder Folder
	Source Source
	Origin Origin
	Timetable
	// Keep is how many are left, from 1.
	Keep int
}

// Name implements component.Component.
func (*Schedule) Name() string { return "snapshots" }

// Ready implements component.Component: nothing waits for a snapshot.
func (*Schedule) Ready(context.Context) error { return nil }

// Run implements component.Component. It sleeps on the monotonic clock and asks the wall clock only how long: a
// clock that is set meanwhile makes the next snapshot early or late by at most one round of the timetable.
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

// overdue says whether one was missed, when the machine was off, or there is none at all.
func (s *Schedule) overdue(now time.Time) bool {
	last, ok := s.last()
	return !ok || !s.Next(last.Time).After(now)
}

func (s *Schedule) inDoubt(now time.Time) bool {
	last, ok := s.last()
	return ok && now.Before(last.Time)
}

// last is the newest snapshot of this cluster that can be read.
func (s *Schedule) last() (Snapshot, bool) {
	list, err := s.Folder.List()
	if err != nil {
		return Snapshot{}, false // saving says what is wrong
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

// untilNext is how long it is to the next time of the timetable that is not just now.
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
