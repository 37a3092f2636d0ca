package logging

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// lockedBuffer receives the output of the limiter's timer while the test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Read(p)
}

// TestRepeatedLines checks that the first lines of a kind are written, then one a minute with the
// count, until a quiet minute.
func TestRepeatedLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b lockedBuffer
		l := setUp(t, &b, nil, "info", "json")
		flood := func(count int) {
			for n := range count {
				slog.Error("Failed to watch", "component", "kubernetes", "err", fmt.Errorf("list item-%d: \"%d\" is gone", n, n), "n", n)
			}
		}
		flood(1000)
		slog.Error("Failed to watch", "component", "kubernetes", "err", errors.New("forbidden")) // another error
		slog.Warn("Failed to watch", "component", "kubernetes", "err", "list item-1: \"1\" is gone")
		got := lines(t, &b)
		require.Len(t, got, limitBurst+2)
		require.EqualValues(t, limitBurst-1, got[limitBurst-1]["n"])

		time.Sleep(limitWindow) // on the clock of synctest
		synctest.Wait()
		got = lines(t, &b)
		require.Len(t, got, 1)
		require.EqualValues(t, 1000-limitBurst, got[0]["repeated"])
		require.EqualValues(t, 999, got[0]["n"])
		require.Equal(t, "ERROR", got[0]["level"])

		flood(500) // in the next minute they are only counted
		require.Empty(t, lines(t, &b))
		time.Sleep(limitWindow)
		synctest.Wait()
		got = lines(t, &b)
		require.Len(t, got, 1)
		require.EqualValues(t, 500, got[0]["repeated"])

		time.Sleep(2 * limitWindow) // quiet: the kind is dropped, and no timer runs
		synctest.Wait()
		require.Empty(t, l.limiter.kinds)
		require.Nil(t, l.limiter.timer)
		flood(1)
		require.Len(t, lines(t, &b), 1)

		flood(100)
		l.Flush() // the process ends
		got = lines(t, &b)
		require.EqualValues(t, 100-limitBurst+1, got[len(got)-1]["repeated"])
		l.Flush()
		require.Empty(t, lines(t, &b))
		time.Sleep(3 * limitWindow)
	})
}

// TestLimiterIsBounded checks that endless messages take no more memory than limitKinds, and write
// no unlimited number of lines.
func TestLimiterIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b lockedBuffer
		l := setUp(t, &b, nil, "info", "json")
		letters := func(n int) string { return string([]byte{'a' + byte(n/676), 'a' + byte(n/26%26), 'a' + byte(n%26)}) }
		const count = 10000
		for n := range count {
			slog.Error("odd "+letters(n), "component", "x")
		}
		require.LessOrEqual(t, len(l.limiter.kinds), limitKinds+4)
		require.Len(t, lines(t, &b), limitKinds+limitBurst)
		time.Sleep(limitWindow)
		synctest.Wait()
		got := lines(t, &b)
		require.Len(t, got, 1)
		require.EqualValues(t, count-limitKinds-limitBurst, got[0]["repeated"])
		time.Sleep(3 * limitWindow)
	})
}

// TestInfoIsNotLimited checks that each of mote's own changes of state is written; there are few.
func TestInfoIsNotLimited(t *testing.T) {
	var b bytes.Buffer
	setUp(t, &b, nil, "info", "json")
	for range 50 {
		slog.Info("applied", "component", "manifests")
	}
	require.Len(t, lines(t, &b), 50)
}

func TestClass(t *testing.T) {
	for _, same := range [][]string{
		{`pods "web-1" not found`, `pods "db" not found`},
		{"dial tcp 10.42.0.7:8080: connect: refused", "dial tcp 10.42.0.11:9090: connect: refused"},
		{"pod 7c9d-11 is gone", "pod 8 is gone"},
		{"a \"b \\\" c\" d", "a \"e\" d"},
	} {
		require.Equal(t, class(same[0]), class(same[1]))
	}
	for _, different := range [][]string{
		{"connection refused", "connection reset"},
		{`pods "a" not found`, `secrets "a" not found`},
		{"", "x"},
	} {
		require.NotEqual(t, class(different[0]), class(different[1]))
	}
	require.LessOrEqual(t, len(class(string(bytes.Repeat([]byte("long "), 1000)))), classSize)
}

// BenchmarkRepeated measures the cost of a counted line.
func BenchmarkRepeated(b *testing.B) {
	l, err := Setup(io.Discard, nil, "info", "text")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { l.limiter.timer.Stop() }()
	err = errors.New("list *v1.PartialObjectMetadata: connection refused")
	b.ReportAllocs()
	for b.Loop() {
		slog.Error("Failed to watch", "component", "kubernetes", "err", err, "type", "x")
	}
}

// BenchmarkWritten measures the cost of a written line, for comparison.
func BenchmarkWritten(b *testing.B) {
	if _, err := Setup(io.Discard, nil, "info", "text"); err != nil {
		b.Fatal(err)
	}
	err := errors.New("list *v1.PartialObjectMetadata: connection refused")
	b.ReportAllocs()
	for b.Loop() {
		slog.Info("Failed to watch", "component", "kubernetes", "err", err, "type", "x")
	}
}
