package logging

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// limitWindow is the interval at which the count of a repeated line is written.
	limitWindow = time.Minute
	// limitBurst is the number of lines of one kind that are written in its first window. A burst
	// of failures of different objects shows several of them.
	limitBurst = 10
	// limitKinds bounds the memory: each kind keeps its last record, some 500 bytes.
	limitKinds = 512
	// classSize is the number of bytes of a message or error that determine its kind.
	classSize = 160
)

// kind identifies records that count as repeated. message and err are classes.
type kind struct {
	level                   slog.Level
	component, message, err string
}

// limiter writes the first limitBurst records of a kind and counts the others. Once in limitWindow
// it writes the newest counted record, with their number in the attribute repeated. A kind that was
// counted in one window is only counted in the next one. A kind that was silent for a window starts
// again. Beyond limitKinds, records of further kinds count as one kind for each level.
//
// No timer runs while no warning or error is logged.
type limiter struct {
	mu    sync.Mutex // guards the fields below
	kinds map[kind]*repeats
	timer *time.Timer // nil while kinds is empty
}

// repeats holds the records of one kind in the current window.
type repeats struct {
	left    int  // number of records that may still be written
	seen    bool // in this window
	counted int
	last    slog.Record
	handler slog.Handler // of last
}

func newLimiter() *limiter { return &limiter{kinds: make(map[kind]*repeats)} }

// handle writes r with next, or counts it.
func (l *limiter) handle(ctx context.Context, next slog.Handler, k kind, r slog.Record) error {
	if l.admit(next, k, r) {
		return next.Handle(ctx, r)
	}
	return nil
}

func (l *limiter) admit(next slog.Handler, k kind, r slog.Record) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.kinds[k]
	if s == nil {
		if len(l.kinds) >= limitKinds {
			k = kind{level: k.level}
			s = l.kinds[k]
		}
		if s == nil {
			s = &repeats{left: limitBurst}
			l.kinds[k] = s
		}
		if l.timer == nil {
			l.timer = time.AfterFunc(limitWindow, l.turn)
		}
	}
	s.seen = true
	if s.left > 0 {
		s.left--
		return true
	}
	s.counted++
	s.last, s.handler = r.Clone(), next
	return false
}

// turn ends a window and begins the next.
func (l *limiter) turn() {
	l.mu.Lock()
	done := l.summaries()
	for k, s := range l.kinds {
		switch {
		case !s.seen:
			delete(l.kinds, k)
		case s.counted > 0:
			s.left = 0
		default:
			s.left = limitBurst
		}
		s.seen, s.counted = false, 0
	}
	l.timer = nil
	if len(l.kinds) > 0 {
		l.timer = time.AfterFunc(limitWindow, l.turn)
	}
	l.mu.Unlock()
	write(done)
}

func (l *limiter) flush() {
	l.mu.Lock()
	done := l.summaries()
	for _, s := range l.kinds {
		s.counted = 0
	}
	l.mu.Unlock()
	write(done)
}

// summaries returns the kinds that have counted records. The caller holds mu.
func (l *limiter) summaries() []repeats {
	var done []repeats
	for _, s := range l.kinds {
		if s.counted > 0 {
			done = append(done, *s)
			s.last, s.handler = slog.Record{}, nil
		}
	}
	return done
}

func write(done []repeats) {
	for _, s := range done {
		s.last.AddAttrs(slog.Int("repeated", s.counted))
		_ = s.handler.Handle(context.Background(), s.last) // slog's loggers drop this error too
	}
}

// class returns text without the words that differ between records of a kind: words with digits,
// and text in quotation marks.
func class(text string) string {
	out := make([]byte, 0, min(len(text), classSize))
	word := 0 // start of the current word in out
	quoted, digit := byte(0), false
	for i := 0; i < len(text) && len(out) < classSize; i++ {
		c := text[i]
		switch {
		case quoted != 0:
			if c == quoted && text[i-1] != '\\' {
				quoted = 0
				out = append(out, c)
			}
			continue
		case c == '"':
			quoted = c
		case c >= '0' && c <= '9':
			digit = true
		}
		if c == ' ' || c == '"' || c == ',' || c == ':' || c == '/' || c == '=' || c == '(' || c == ')' {
			if digit {
				out = append(out[:word], '#')
			}
			out = append(out, c)
			word, digit = len(out), false
			continue
		}
		out = append(out, c)
	}
	if digit {
		out = append(out[:word], '#')
	}
	return string(out)
}
