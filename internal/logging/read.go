package logging

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// followInterval is the interval at which a followed log is read. It costs one read that finds
// nothing.
const followInterval = 200 * time.Millisecond

// Record is one record of a History, or a line that is not a record: the output of the runtime when
// the process crashed. Such a line has the time of the record before it, level error and no
// component.
type Record struct {
	Time      time.Time
	Level     slog.Level
	Message   string
	Component string
	// Line is the line as it was written, without the line break.
	Line []byte `json:"-"`
	// crash marks a line that is not a record.
	crash bool
}

// Read calls each with every record of the History in dir, oldest first. With follow it continues
// with new records until ctx ends. The error is fs.ErrNotExist if dir has no History.
func Read(ctx context.Context, dir string, follow bool, each func(Record) error) error {
	path := filepath.Join(dir, historyFile)
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	r := &reader{file: file, each: each}
	defer func() { r.file.Close() }()
	if err := r.readOlder(filepath.Join(dir, olderFile)); err != nil {
		return err
	}
	tick := time.NewTicker(followInterval)
	defer tick.Stop()
	for {
		// Check before reading: the lines that were written until then are read from the open file.
		replaced := !sameFile(r.file, path)
		if err := r.lines(); err != nil {
			return err
		}
		if !follow {
			return nil
		}
		if next, err := os.Open(path); replaced && err == nil {
			r.file.Close()
			r.file = next
			continue
		} else if err == nil {
			next.Close()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func sameFile(file *os.File, path string) bool {
	open, err := file.Stat()
	named, statErr := os.Stat(path)
	return err == nil && statErr == nil && os.SameFile(open, named)
}

// reader reads one file after the other.
type reader struct {
	file *os.File
	each func(Record) error
	rest []byte // of a line that is not complete yet
	last time.Time
}

// readOlder reads the older file first, unless it is the open file, which has just been renamed.
func (r *reader) readOlder(path string) error {
	older, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	defer older.Close()
	if sameFile(r.file, path) {
		return nil
	}
	newer := r.file
	r.file = older
	err = r.lines()
	r.file = newer
	return err
}

// lines reads to the end of the file.
func (r *reader) lines() error {
	in := bufio.NewReader(r.file)
	for {
		part, err := in.ReadBytes('\n')
		r.rest = append(r.rest, part...)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		record := parse(bytes.TrimRight(r.rest, "\n"), r.last)
		r.rest, r.last = nil, record.Time
		if err := r.each(record); err != nil {
			return err
		}
	}
}

// parse parses a line that follows a record of time last.
func parse(line []byte, last time.Time) Record {
	r := Record{Time: last, Line: line}
	fields, err := split(line)
	if err != nil {
		r.Level, r.crash = slog.LevelError, true
		return r
	}
	own := map[string]any{slog.TimeKey: &r.Time, slog.LevelKey: &r.Level, slog.MessageKey: &r.Message, "component": &r.Component}
	for _, f := range fields {
		if value, ok := own[f.key]; ok {
			_ = json.Unmarshal(f.value, value) // a value of another form counts as missing
			delete(own, f.key)
		}
	}
	return r
}

// field is a field of a JSON object.
type field struct {
	key   string
	value json.RawMessage
}

// split returns the fields of a JSON object in order. A key may repeat in a record: the handler's
// own fields come first, and an attribute of an upstream component may be called msg too.
func split(line []byte) (fields []field, err error) {
	if !json.Valid(line) {
		return nil, errors.New("it is no JSON")
	}
	d := json.NewDecoder(bytes.NewReader(line))
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		return nil, errors.New("it is no JSON object")
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		f := field{key: fmt.Sprint(key)}
		if err := d.Decode(&f.value); err != nil {
			return nil, err
		}
		fields = append(fields, f)
	}
	return fields, nil
}

// OfNobody reports whether the line belongs to no component, because a process wrote it as it
// crashed.
func (r Record) OfNobody() bool { return r.crash }

// WriteText writes the record as Setup does in format text.
func (r Record) WriteText(w io.Writer) error {
	if r.crash {
		_, err := fmt.Fprintf(w, "%s\n", r.Line)
		return err
	}
	out := slog.NewRecord(r.Time, r.Level, r.Message, 0)
	fields, err := split(r.Line)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	own := map[string]bool{slog.TimeKey: true, slog.LevelKey: true, slog.MessageKey: true}
	for _, f := range fields {
		if own[f.key] {
			delete(own, f.key)
			continue
		}
		out.AddAttrs(slog.String(f.key, plain(f.value)))
	}
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}).Handle(context.Background(), out)
}

// plain returns the content of a string, or any other value as it is written.
func plain(value json.RawMessage) string {
	var text string
	if json.Unmarshal(value, &text) == nil {
		return text
	}
	return string(value)
}
