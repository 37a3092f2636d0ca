package bolt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

const (
	// maxBatch bounds the requests of one transaction, and with it how long the first waits for
	// the work of the last.
	maxBatch = 512
	// maxBatchBytes bounds a transaction's new values for the same reason.
	maxBatchBytes = 8 << 20
)

// request is one write on its way through the writer.
type request struct {
	apply func(*writeTx) (answer, error)
	// done is closed once answer and err are final.
	done   chan struct{}
	answer answer
	err    error
}

// answer is what a request gets. refusal is for the caller that asked; the transaction goes on.
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

// wait returns the request's answer. When ctx ends first, the write may still happen.
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

// write is the writer: the only goroutine that changes the file.
func (s *Store) write() {
	defer close(s.written)
	for {
		select {
		case first := <-s.requests:
			s.commit(first)
		case <-s.closing:
			return
		}
	}
}

// commit runs first and what else is waiting in one transaction, and answers all of them.
func (s *Store) commit(first *request) {
	batch := make([]*request, 0, 16)
	err := s.failureNow()
	if err == nil {
		batch, err = s.transact(first, batch)
	} else {
		batch = append(batch, first)
	}
	for _, req := range batch {
		req.err = err
		close(req.done)
	}
}

// transact returns the requests that it took into the transaction. On error none has happened.
func (s *Store) transact(first *request, batch []*request) ([]*request, error) {
	tx, err := s.begin()
	if err != nil {
		return append(batch, first), s.fail(err)
	}
	for req := first; req != nil; req = s.next(tx, len(batch)) {
		batch = append(batch, req)
		if req.answer, err = req.apply(tx); err != nil {
			return batch, errors.Join(fmt.Errorf("write to datastore: %w", err), tx.tx.Rollback())
		}
	}
	if !tx.dirty {
		return batch, tx.tx.Rollback()
	}
	if err := tx.finish(); err != nil {
		return batch, s.fail(err)
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
		return nil
	}
}

// publish makes a committed transaction visible. Watches come first: whoever has read a revision
// here or got it as an answer can rely on WaitDelivered for it.
func (s *Store) publish(tx *writeTx) {
	s.leases.apply(tx.granted, tx.events)
	s.compacted.Store(tx.compacted)
	s.hub.publish(tx.events, tx.revision)
	s.revision.Store(tx.revision)
	if tx.scrubbed < tx.compacted {
		s.wakeScrubber()
	}
}

// fail decides what a failed commit means. A full disk is met before anything that counts has been
// overwritten: bbolt rolls back and later writes may succeed. After any other error, above all one
// of fdatasync, the page cache may claim what the disk does not have: the store is given up.
func (s *Store) fail(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	s.failure = fmt.Errorf("commit to datastore %s: %w; check the disk, then start again", s.db.Path(), err)
	close(s.failed)
	return s.failure
}

func (s *Store) failureNow() error {
	select {
	case <-s.failed:
		return s.failure
	default:
		return nil
	}
}

// writeTx is one transaction of the writer.
type writeTx struct {
	tx              *bbolt.Tx
	meta, log, keys *bbolt.Bucket
	rows            *bbolt.Bucket // of leases
	leases          *leases
	now             time.Time
	revision        int64
	compacted       int64
	scrubbed        int64
	// granted holds the leases that this transaction changes; nil is one that ends.
	granted map[int64]*lease
	// dirty says that there is something to commit.
	dirty  bool
	bytes  int
	events []Event
}

// logFill is how full bbolt leaves a page of the log when it splits it: full, since keys only grow.
const logFill = 1.0

func (s *Store) begin() (*writeTx, error) {
	tx, err := s.db.Begin(true)
	if err != nil {
		return nil, closedError(err)
	}
	meta := tx.Bucket(bucketMeta())
	t := &writeTx{
		tx: tx, meta: meta, log: tx.Bucket(bucketLog()), keys: tx.Bucket(bucketKeys()),
		rows: tx.Bucket(bucketLeases()), leases: s.leases, granted: map[int64]*lease{},
		now:       time.Now(),
		revision:  getMeta(meta, metaRevision),
		compacted: getMeta(meta, metaCompacted),
		scrubbed:  getMeta(meta, metaScrubbed),
	}
	t.log.FillPercent = logFill
	return t, nil
}

// finish writes the counters and commits.
func (t *writeTx) finish() error {
	err := errors.Join(
		putMeta(t.meta, metaRevision, t.revision),
		putMeta(t.meta, metaCompacted, t.compacted),
		putMeta(t.meta, metaScrubbed, t.scrubbed),
	)
	if err != nil {
		return errors.Join(err, t.tx.Rollback())
	}
	return t.tx.Commit()
}
