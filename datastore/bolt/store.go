package bolt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/wal"
)

// Store is an open store. It runs three goroutines, which Close ends: the writer, the checkpointer and the
// expirer of leases.
type Store struct {
	options  Options
	path     string
	db       *bbolt.DB
	requests chan *request
	hub      *hub
	leases   *leases
	counters counters
	repairs  []Repair
	suspect  atomic.Bool // damage was met
	space    space

	// The writer's, and Close's after it. ceiling is what the last frame of the log promised.
	wal         *wal.Log
	ceiling     int64
	burst       burst
	payload     []byte      // a buffer for frames
	pending     *checkpoint // until it is known to be done
	checkpoints chan *checkpoint

	// mu guards layers, the slice and which it is; see view.
	mu     sync.RWMutex
	layers []*layer
	// revision and compacted are what the last transaction left that was published.
	revision, compacted atomic.Int64

	closing      chan struct{} // closed: take no more requests
	written      chan struct{} // closed: the writer has returned
	workers      sync.WaitGroup
	checkpointed sync.WaitGroup
	close        sync.Once
	// failed is closed after failure has been set: the disk broke and nothing can be trusted.
	failing sync.Once
	failed  chan struct{}
	failure error
}

// Options are what an operator may choose. The zero value is the default.
type Options struct {
	// ProgressInterval is how long a watch that wants progress may know less than the current revision when
	// nothing happens in its range. The default is a minute: it must be well below the apiserver's five
	// minutes between compactions, or idle watches could not be resumed; each time wakes the apiserver
	// once for each resource.
	ProgressInterval time.Duration
	// Volatile are the beginnings of keys that are kept in memory, and written at checkpoints and at a clean
	// stop only. After a crash they are what they were at the last checkpoint; who watched anything is told
	// that the history is compacted. Only for what its owner writes again anyway. The default is none.
	Volatile []string
	// QuotaBytes is how much the store may hold, in bytes of the file that are in use and of memory that waits for it; 0 is 8 GiB. Over
	// it, all writes are refused with ErrNoSpace but deletions, volatile ones and compactions. Too little stops the cluster from
	// changing; too much may fill the disk.
	QuotaBytes int64
	// Restore returns the file of the newest good snapshot and its name. It is called when the file is damaged so that data would be
	// lost. Nil, and no reader, is none.
	Restore func() (file io.ReadCloser, name string, err error)
	// Above is a revision above which a store that is made begins, with its history compacted. One that is there
	// already is left as it is.
	Above int64

	// Tests have smaller layers than layerLimit, disks that break, and a look at the file before and after a
	// checkpoint.
	limit        int64
	openLog      func(path string) (wal.Files, error)
	atCheckpoint func(done bool)
}

const (
	defaultProgressInterval = time.Minute
	// defaultQuota is what etcd recommends as the most.
	defaultQuota = 8 << 30
)

// Open opens the store at path, or makes one, with its folder. Two files of its write-ahead log are beside
// it. The error says what to do.
func Open(path string, o Options) (*Store, error) {
	if o.ProgressInterval <= 0 {
		o.ProgressInterval = defaultProgressInterval
	}
	if o.QuotaBytes <= 0 {
		o.QuotaBytes = defaultQuota
	}
	if o.limit <= 0 {
		o.limit = layerLimit
	}
	if o.openLog == nil {
		o.openLog = openLog
	}
	if o.atCheckpoint == nil {
		o.atCheckpoint = func(bool) {}
	}
	start, err := begin(path, o)
	if err != nil {
		return nil, advise(path, err)
	}
	s, err := start.open()
	if err != nil {
		return nil, errors.Join(advise(path, err), start.file.Close())
	}
	s.hub = newHub(s)
	s.workers.Go(s.write)
	s.workers.Go(s.expire)
	s.checkpointed.Go(s.checkpointer)
	return s, nil
}

// open makes a store of the file, which is repaired if need be, and puts into it what only the log has.
func (o *opening) open() (*Store, error) {
	now, log, err := o.judge()
	if err != nil {
		return nil, err
	}
	db, err := o.database()
	if err != nil {
		return nil, errors.Join(err, log.close())
	}
	s := &Store{
		path: o.path, options: o.options, db: db, space: space{file: o.file},
		requests: make(chan *request, maxBatch), leases: newLeases(),
		checkpoints: make(chan *checkpoint, 1), layers: []*layer{newLayer()},
		closing: make(chan struct{}), written: make(chan struct{}), failed: make(chan struct{}),
		ceiling: now.counters[metaCeiling], wal: log.log, burst: newBurst(),
	}
	s.revision.Store(now.counters[metaRevision])
	s.compacted.Store(now.counters[metaCompacted])
	if err := s.recover(o, log, now.counters[metaMarked] == 1); err != nil {
		return nil, errors.Join(err, log.close(), db.Close())
	}
	s.repairs = o.repairs
	return s, nil
}

// recover reads what the store keeps in memory, and puts into the file what only the log has.
func (s *Store) recover(o *opening, log *journal, marked bool) error {
	if err := s.db.View(s.loadLeases); err != nil {
		return err
	}
	for _, f := range log.frames {
		s.replay(f)
	}
	if err := s.measure(); err != nil {
		return err
	}
	if log.found.Damage != nil {
		if err := s.repairLog(o, log.found, len(log.frames)); err != nil {
			return err
		}
		s.counters.logBytes.Store(s.wal.Size())
		return log.close()
	}
	s.counters.logBytes.Store(s.wal.Size())
	if log.found.Torn {
		s.tellTorn(o)
	}
	if len(log.frames) == 0 && s.ceiling == 0 && marked {
		return nil // it was stopped cleanly
	}
	return s.saveFirst()
}

// saveFirst puts what was read from the log into the file, with revisions that nobody was given.
func (s *Store) saveFirst() error {
	if s.ceiling > 0 {
		// Revisions up to the ceiling may have been given out, and what was written then is lost: who knows
		// of it has to read everything again.
		s.revision.Store(max(s.revision.Load(), s.ceiling) + 1)
		s.compacted.Store(s.revision.Load())
		s.ceiling = 0
	}
	// The checkpoint names a sequence of the log, which should have begun. It cannot where that overwrites what was read.
	if s.wal.Spare() {
		if err := s.wal.Begin(); err != nil && !isNoSpace(err) {
			return err
		}
	}
	return s.firstCheckpoint()
}

// firstCheckpoint puts what only the log has into the file. Without room for that, the store serves reads: the log's files are still
// needed, so writes wait until there is room.
func (s *Store) firstCheckpoint() error {
	cp, err := s.newCheckpoint()
	if err == nil {
		err = s.writeCheckpoint(cp)
	}
	switch {
	case err == nil:
		s.layers = []*layer{newLayer()}
		return nil
	case !isNoSpace(err):
		return err
	}
	slog.Warn("no space left on the datastore's disk, only reads are served", "component", "datastore", "path", s.path, "error", err)
	cp.err, cp.first = noSpace(err), true
	close(cp.done)
	s.pending = cp
	s.layers = []*layer{newLayer(), cp.layer}
	s.space.full.Store(true)
	return nil
}

// logPath is what the names of the write-ahead log's files begin with.
func logPath(path string) string {
	return strings.TrimSuffix(path, filepath.Ext(path)) + ".wal"
}

// openLog opens the log's files, which are made before the file that they belong to.
func openLog(path string) (wal.Files, error) {
	for _, name := range logNames(path) {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			return wal.Files{}, fmt.Errorf("%w: %s", errNoLog, name)
		}
	}
	return wal.OpenFiles(path)
}

// replay does again what a frame of the log says.
func (s *Store) replay(f frame) {
	s.layers[0].add(f.records, f.leases)
	for id, row := range f.leases {
		if row.ttl > 0 {
			s.leases.restore(id, row)
		}
	}
	for _, rec := range f.records {
		s.leases.attach(string(rec.key), rec.lease)
	}
	for id, row := range f.leases {
		if row.ttl == 0 {
			s.leases.remove(id)
		}
	}
	s.revision.Store(f.revision)
	s.compacted.Store(max(s.compacted.Load(), f.compacted))
	s.ceiling = max(s.ceiling, f.ceiling)
}

func (s *Store) loadLeases(tx *bbolt.Tx) error {
	err := tx.Bucket(bucketLeases()).ForEach(func(k, v []byte) error {
		id, row, err := decodeLease(k, v)
		if err == nil {
			s.leases.restore(id, row)
		}
		return err
	})
	if err != nil {
		return err
	}
	return tx.Bucket(bucketKeys()).ForEach(func(key, row []byte) error {
		h, err := decodeHeader(key, row)
		if err == nil && h.lease != 0 {
			s.leases.attach(string(key), h.lease)
		}
		return err
	})
}

// Close answers the requests that were taken, ends all watches, writes what is in memory to the file and
// closes it.
func (s *Store) Close() error {
	var err error
	s.close.Do(func() {
		close(s.closing)
		s.workers.Wait()
		close(s.checkpoints)
		s.checkpointed.Wait()
		s.hub.close()
		err = errors.Join(s.lastCheckpoint(), s.wal.Close(), s.space.file.Close(), s.db.Close())
	})
	return err
}

// lastCheckpoint leaves nothing in the log. If there is no room for that, the next Open finds it there;
// what is volatile is then lost.
func (s *Store) lastCheckpoint() error {
	if s.failureNow() != nil {
		return nil // the failure has been told
	}
	if s.suspect.Load() { // a start after this looks at everything
		f := frame{revision: s.revision.Load(), compacted: s.compacted.Load(), ceiling: s.ceiling}
		return s.wal.Append(f.encode())
	}
	var saved int64
	err := s.view(func(v *view) error {
		saved = getMeta(v.meta, metaCompacted)
		return nil
	})
	if err == nil && s.pending != nil && s.pending.err != nil {
		err = s.writeCheckpoint(s.pending)
	}
	if err == nil && (!s.newest().empty() || s.ceiling != 0 || s.compacted.Load() != saved) {
		var cp *checkpoint
		if cp, err = s.newCheckpoint(); err == nil {
			cp.ceiling = 0
			err = s.writeCheckpoint(cp)
		}
	}
	if isNoSpace(err) || errors.Is(err, ErrNoSpace) {
		return nil
	}
	return err
}

// Failed is closed when the disk refused a write in a way that leaves the files in doubt. From then on
// every request fails; only opening them anew tells what is on the disk. See Failure.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Failure is why Failed is closed. It may be called only after that.
func (s *Store) Failure() error { return s.failure }

// Revision is the last revision that was given out and published to watches.
func (s *Store) Revision() int64 { return s.revision.Load() }

// Compacted is the revision below which there is no history.
func (s *Store) Compacted() int64 { return s.compacted.Load() }

// Size is the size of the store's files in bytes, free pages included.
func (s *Store) Size() (int64, error) {
	stats, err := s.Stats()
	return stats.FileBytes + stats.LogBytes, err
}

// Write does w if its guard holds. When it does not, Result says what is in the way.
func (s *Store) Write(ctx context.Context, w Write) (Result, error) {
	return s.submit(ctx, func(tx *writeTx) (answer, error) { return tx.write(w) })
}
