package logging

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func openHistory(t *testing.T, dir string) *History {
	t.Helper()
	h := &History{}
	require.NoError(t, h.Open(dir))
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

func readAll(t *testing.T, dir string) []Record {
	t.Helper()
	var all []Record
	require.NoError(t, Read(t.Context(), dir, false, func(r Record) error { all = append(all, r); return nil }))
	return all
}

func TestHistoryReadsAsItWasLogged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	h := &History{}
	var text bytes.Buffer
	setUp(t, &text, h, "info", "text")
	slog.Info("before it is open", "component", "mote", "after", 1500*time.Millisecond)
	require.NoError(t, h.Open(dir))
	slog.Warn("two words", "component", "kubelet", "n", 3, "list", []string{"a"}, "quoted", `a "b" c=d`)
	require.NoError(t, h.Close())

	// A later process continues the file, after a crash.
	file, err := os.OpenFile(filepath.Join(dir, historyFile), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = file.WriteString("panic: boom\n\n")
	require.NoError(t, err)
	require.NoError(t, file.Close())
	h = openHistory(t, dir)
	setUp(t, &text, h, "info", "text")
	slog.Debug("not logged")
	slog.Error("again", "component", "mote")

	got := readAll(t, dir)
	require.Len(t, got, 5)
	require.Equal(t, "kubelet", got[1].Component)
	require.Equal(t, slog.LevelWarn, got[1].Level)
	require.True(t, got[2].OfNobody())
	require.Equal(t, got[1].Time, got[2].Time)
	var again bytes.Buffer
	for _, r := range got {
		require.NoError(t, r.WriteText(&again))
	}
	lines := strings.SplitAfter(text.String(), "\n")
	require.Equal(t, lines[0]+strings.Replace(lines[1], "list=[a]", `list="[\"a\"]"`, 1)+"panic: boom\n\n"+lines[2], again.String())
	for path, mode := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, historyFile): 0o600} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm())
	}
}

// TestAttributesMayHaveAnyName checks that no attribute hides a part of the record or makes the
// record look like a crash.
func TestAttributesMayHaveAnyName(t *testing.T) {
	dir := t.TempDir()
	h := openHistory(t, dir)
	var text bytes.Buffer
	setUp(t, &text, h, "info", "text")
	before := time.Now().Truncate(time.Millisecond)
	slog.Warn("told", "component", "kubelet", "time", "3s", "level", 4, "msg", "other", "component", 5, "Msg", "odd", "LEVEL", "high")
	got := readAll(t, dir)
	require.Len(t, got, 1)
	require.False(t, got[0].OfNobody())
	require.Equal(t, []any{"told", "kubelet", slog.LevelWarn}, []any{got[0].Message, got[0].Component, got[0].Level})
	require.False(t, got[0].Time.Before(before))
	var again bytes.Buffer
	require.NoError(t, got[0].WriteText(&again))
	require.Equal(t, text.String(), again.String())

	_, err := h.Write([]byte("[1]\n{} goroutine\n"))
	require.NoError(t, err)
	for _, r := range readAll(t, dir)[1:] {
		require.True(t, r.OfNobody(), string(r.Line))
		require.Equal(t, got[0].Time, r.Time)
	}
}

func record(n int) []byte {
	return fmt.Appendf(nil, `{"time":"2026-01-02T03:04:05Z","level":"INFO","msg":"%d %s"}`+"\n", n, strings.Repeat("x", 1000))
}

// TestHistoryIsBounded checks that two files of historySize hold the newest records, without a gap.
func TestHistoryIsBounded(t *testing.T) {
	dir := t.TempDir()
	h := openHistory(t, dir)
	const count = 5000
	for n := range count {
		_, err := h.Write(record(n))
		require.NoError(t, err)
	}
	var size int64
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 2)
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		size += info.Size()
	}
	require.LessOrEqual(t, size, int64(2*historySize))
	got := readAll(t, dir)
	require.Greater(t, len(got), historySize/len(record(0)))
	for i, r := range got {
		require.True(t, strings.HasPrefix(r.Message, fmt.Sprint(count-len(got)+i, " ")), r.Message[:10])
	}
}

// TestFollow checks that a follower sees every record when the files rotate.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		h := &History{}
		require.NoError(t, h.Open(dir))
		write := func(n int) {
			_, err := h.Write(record(n))
			require.NoError(t, err)
		}
		write(0)
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		done := make(chan error)
		go func() {
			done <- Read(ctx, dir, true, func(r Record) error {
				got = append(got, strings.Fields(r.Message)[0])
				return nil
			})
		}()
		var want []string
		for n := range 1500 {
			if n > 0 {
				write(n)
			}
			if n%400 == 0 {
				time.Sleep(followInterval) // on the clock of synctest
				synctest.Wait()
			}
			want = append(want, fmt.Sprint(n))
		}
		time.Sleep(2 * followInterval)
		synctest.Wait()
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, want, got)
		require.NoError(t, h.Close())
	})
}

func TestNoHistory(t *testing.T) {
	require.ErrorIs(t, Read(t.Context(), t.TempDir(), true, nil), fs.ErrNotExist)
}
