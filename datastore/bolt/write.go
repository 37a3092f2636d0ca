package bolt

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/mote-k8s/mote/internal/durable"
)

const (
	// maxBatch bounds the requests of one transaction, and with it how long the first waits for the
	// work of the last.
	maxBatch = 512
	// maxBatchBytes bounds the new values of a transaction for the same reason.
	maxBatchBytes = 2 << 20
)

// request is one write on its way through the writer.
type request struct {
	apply func(*writeTx) (answer, error)
	// done is closed once answer and err are final.
	done   chan struct{}
	answer answer
	err    error
}

// answer is the answer to a request. refusal goes to its caller; the transaction continues.
type answer struct {
	Result
	refusal error
}

// enqueue hands a write to the writer.
func (s *Store) enqueue(ctx context.Context, apply func(*writeTx) (answer, error)) (*request, error) {
	req := &request{apply: apply, done: make(chan struct{})}
	select {
	case <-s.closing:
		return nil, ErrClosed
	default:
	}
	select {
	case s.requests <- req:
		return req, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.closing:
		return nil, ErrClosed
	}
}

// wait returns the answer to a request. If ctx ends first, the write may still happen.
func (s *Store) wait(ctx context.Context, req *request) (Result, error) {
	select {
	case <-req.done:
	case <-ctx.Done():
		return Result{}, ctx.Err()
	case <-s.written:
		select {
		case <-req.done:
		default:
			return Result{}, ErrClosed
		}
	}
	if req.err != nil {
		return Result{}, req.err
	}
	return req.answer.Result, req.answer.refusal
}

func (s *Store) submit(ctx context.Context, apply func(*writeTx) (answer, error)) (Result, error) {
	req, err := s.enqueue(ctx, apply)
	if err != nil {
		return Result{}, err
	}
	return s.wait(ctx, req)
}

// write is the writer: only this goroutine changes the store's contents.
func (s *Store) write() {
	defer close(s.written)
	for {
		select {
		case first := <-s.requests:
			s.commit(first)
		case <-s.burst.timer.C:
			s.endBurst()
		case <-s.closing:
			return
		}
	}
}

// commit executes first and other waiting requests in one transaction, and answers all of them.
func (s *Store) commit(first *request) {
	batch, err := s.transact(first)
	if errors.Is(err, ErrNoSpace) {
		s.counters.refusals.Add(int64(len(batch)))
	}
	for _, req := range batch {
		req.err = err
		close(req.done)
	}
	if err == nil {
		s.reclaimSpace()
	}
}

// transact returns the requests that it took into the transaction. After an error none has
// happened.
func (s *Store) transact(first *request) ([]*request, error) {
	batch := append(make([]*request, 0, 16), first)
	if err := s.currentFailure(); err != nil {
		return batch, err
	}
	if err := s.ensureRoom(); err != nil {
		return batch, err
	}
	tx, err := s.begin()
	if err != nil {
		return batch, err
	}
	for req := first; req != nil && err == nil; {
		if req.answer, err = tx.apply(req); err == nil {
			if req = s.next(tx, len(batch)); req != nil {
				batch = append(batch, req)
			}
		}
	}
	if err := errors.Join(err, tx.view.tx.Rollback()); err != nil {
		return batch, fmt.Errorf("write to datastore: %w", err)
	}
	if !tx.changed {
		return batch, nil
	}
	if err := s.logTx(tx); err != nil {
		return batch, err
	}
	s.publish(tx)
	return batch, nil
}

// next returns a request that waits and still fits into tx, or nil.
func (s *Store) next(tx *writeTx, taken int) *request {
	if taken >= maxBatch || tx.bytes >= maxBatchBytes {
		return nil
	}
	select {
	case req := <-s.requests:
		return req
	default:
	}
	// Requests that have been received, but not been put into the queue, get the chance: a tenth
	// fewer syncs.
	runtime.Gosched()
	select {
	case req := <-s.requests:
		return req
	default:
		return nil
	}
}

// volatileReserve is the number of revisions that are promised to volatile writes at once. A crash
// skips those that are left.
const volatileReserve = 10_000

// keepPayload is the largest buffer that is kept for the next frame, in bytes.
const keepPayload = 256 << 10

// logTx appends the durable part of a transaction to the log.
func (s *Store) logTx(tx *writeTx) error {
	ceiling := s.ceiling
	if tx.volatile && tx.revision > ceiling {
		ceiling = tx.revision + volatileReserve
	}
	if !tx.durable && ceiling == s.ceiling {
		return nil
	}
	start := time.Now()
	f := tx.frame(ceiling)
	payload := f.Append(s.payload[:0])
	if cap(payload) <= keepPayload {
		s.payload = payload
	}
	err := s.wal.Append(payload)
	addSince(&s.counters.syncing, start)
	s.counters.logBytes.Store(s.wal.Size())
	if err != nil {
		return s.refuseOrFail(err)
	}
	s.counters.frames.Add(1)
	s.burst.add(time.Now(), len(payload))
	s.space.diskFull.Store(false)
	s.ceiling = ceiling
	for id := range f.Leases {
		if l := tx.lease(id); l != nil {
			l.saved = true
		}
	}
	return nil
}

// refuseOrFail returns an error of the log as a refusal if the disk is full. It fails the store
// otherwise.
func (s *Store) refuseOrFail(err error) error {
	if !durable.IsDiskFull(err) {
		return s.fail(err)
	}
	s.space.diskFull.Store(true)
	return noSpace(err)
}

// publish makes a committed transaction visible. Watches come first: a client that has read a
// revision here, or received it in an answer, relies on the progress that watches report.
func (s *Store) publish(tx *writeTx) {
	s.newest().add(tx.records, tx.leaseRows())
	s.counters.writes.Add(int64(len(tx.records)))
	s.leases.apply(tx.granted, tx.events)
	s.hub.publish(tx.events, tx.revision)
	s.revision.Store(tx.revision)
	// This comes last: a read at the previous revision must not find its versions gone.
	if tx.compacted > s.compacted.Load() {
		s.compactNewest(tx.compacted)
	}
}

// fail stops the store. After a failed sync the page cache may claim to have data that the disk
// does not have: only the next Open reads the true contents.
func (s *Store) fail(err error) error {
	s.failing.Do(func() {
		s.failure = fmt.Errorf("commit to datastore %s: %w; check the disk, then start again", s.path, err)
		close(s.failed)
	})
	return s.failure
}

func (s *Store) currentFailure() error {
	select {
	case <-s.failed:
		return s.failure
	default:
		return nil
	}
}
