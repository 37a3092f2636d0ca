package sandbox

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// acceptRetry is the pause of a forward after the system refused to accept a connection.
const acceptRetry = 100 * time.Millisecond

// publishWait is the time that a connection to a published port waits for the NodePort behind it. A
// Service is often made, or gets its first endpoint, moments after its clients begin to try.
// publishRetry is the pause between two attempts. Before the NodePort answers there is no event to
// wait for.
const (
	publishWait  = 30 * time.Second
	publishRetry = 50 * time.Millisecond
)

// patient calls dial until it succeeds, for at most publishWait.
func patient(dial func(context.Context) (net.Conn, error)) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, publishWait)
		defer cancel()
		for {
			conn, err := dial(ctx)
			if err == nil {
				return conn, nil
			}
			select {
			case <-ctx.Done():
				return nil, err
			case <-time.After(publishRetry):
			}
		}
	}
}

// forward accepts connections on a listener of the host and forwards them into the sandbox.
type forward struct {
	listener net.Listener
	dial     func(context.Context) (net.Conn, error)
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

func startForward(l net.Listener, dial func(context.Context) (net.Conn, error)) *forward {
	ctx, cancel := context.WithCancel(context.Background())
	f := &forward{listener: l, dial: dial, cancel: cancel}
	f.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				select { // an error such as too many open files does not last for ever
				case <-ctx.Done():
					return
				case <-time.After(acceptRetry):
					continue
				}
			}
			f.wg.Go(func() { f.serve(ctx, conn) })
		}
	})
	return f
}

func (f *forward) address() string { return f.listener.Addr().String() }

// close ends the listener and every connection.
func (f *forward) close() {
	f.listener.Close()
	f.cancel()
	f.wg.Wait()
}

func (f *forward) serve(ctx context.Context, outside net.Conn) {
	defer outside.Close()
	inside, err := f.dial(ctx)
	if err != nil {
		return // the caller's connection is closed, as with a port on which no program listens
	}
	defer inside.Close()
	stop := context.AfterFunc(ctx, func() {
		outside.Close()
		inside.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { pipe(inside, outside) })
	wg.Go(func() { pipe(outside, inside) })
	wg.Wait()
}

// pipe copies until from ends, and passes the end on. The other direction may go on: kubectl exec
// and many protocols need that. Between TCP sockets the copy stays in the kernel.
func pipe(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if tcp, ok := to.(*net.TCPConn); ok && err == nil {
		_ = tcp.CloseWrite() // the peer may be gone
		return
	}
	to.Close()
	from.Close()
}
