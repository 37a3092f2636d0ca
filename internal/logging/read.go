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

// followInterval is how often a followed log is looked at. It costs one read that finds nothing.
const followInterval = 200 * time.Millisecond

// Record is one record of a History, or a line that is none: the runtime's words when the process crashed. Such a
// line has the time of the record before it, level error and no component.
type Record struct {
	Time      time.Time  `json:"time"`
	Level     slog.Level `json:"level"`
	Message   string     `json:"msg"`
	Component string     `json:"component"`
	// Line is as it was written, without its end.
	Line []byte `json:"-"`
	// crash marks a line that is no record.
	crash bool
}

// Read calls each with every record of the History in dir, oldest first, and with follow with those to come, until
// ctx ends. The error is fs.ErrNotExist where no History was.
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
		// Looked at before reading: what was written until then is read from the file that is open.
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
	rest []byte // of a line whose end is not there yet
	last time.Time
}

// readOlder reads the older file first, unless it is the one that is open and has just been renamed.
func (r *reader) readOlder(path string) error {
	older, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && sameFile(r.file, path) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	defer older.Close()
	newer := r.file
	r.file = older
	err = r.lines()
	r.file = newer
	return err
}

// lines reads to the file's end.
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
		record := Record{Line: bytes.TrimRight(r.rest, "\n")}
		if json.Unmarshal(record.Line, &record) != nil {
			record = Record{Time: r.last, Level: slog.LevelError, Line: record.Line, crash: true}
		}
		r.rest, r.last = nil, record.Time
		if err := r.each(record); err != nil {
			return err
		}
	}
}

// OfNobody tells that the line is no component's but was written by a process as it crashed.
func (r Record) OfNobody() bool { return r.crash }

// WriteText writes the record as Setup does in format text.
func (r Record) WriteText(w io.Writer) error {
	if r.crash {
		_, err := fmt.Fprintf(w, "%s\n", r.Line)
		return err
	}
	out := slog.NewRecord(r.Time, r.Level, r.Message, 0)
	d := json.NewDecoder(bytes.NewReader(r.Line))
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		switch name := fmt.Sprint(key); name {
		case slog.TimeKey, slog.LevelKey, slog.MessageKey:
		default:
			out.AddAttrs(slog.String(name, plain(value)))
		}
	}
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}).Handle(context.Background(), out)
}

// plain is a string's content, or any other value as it is written.
func plain(value json.RawMessage) string {
	var text string
	if json.Unmarshal(value, &text) == nil {
		return text
	}
	return string(value)
}
