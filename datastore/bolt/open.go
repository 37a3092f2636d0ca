package bolt

import (
	"errors"
	"io"
	"log/slog"
	"time"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
	"github.com/mote-k8s/mote/datastore/wal"
	"github.com/mote-k8s/mote/internal/durable"
)

// Options are the settings that an operator may choose. The zero value is the default.
type Options struct {
	// ProgressInterval limits how far behind the current revision a watch that wants progress may
	// be while nothing happens in its range. The default is a minute. It must be well below the
	// apiserver's five minutes between compactions, or idle watches could not be resumed. Each
	// progress message wakes the apiserver once for each resource.
	ProgressInterval time.Duration
	// Volatile are prefixes of keys that are kept in memory, and written only at checkpoints and at
	// a clean stop. After a crash they have the values of the last checkpoint, and watches end with
	// ErrCompacted. Use it only for keys that their owner writes again anyway. The default is none.
	Volatile []string
	// QuotaBytes limits the size of the store in bytes: used pages of the file and memory that
	// waits for it. 0 means 8 GiB. Over it, all writes are refused with ErrNoSpace except
	// deletions, volatile writes and compactions. A limit that is too small stops the cluster from
	// changing; one that is too large may fill the disk.
	QuotaBytes int64
	// Restore returns the file of the newest good snapshot and its name. It is called if the file
	// is so damaged that data would be lost. Nil, or no reader, means that there is none.
	Restore func() (file io.ReadCloser, name string, err error)
	// Above is a revision above which a new store begins, with its history compacted. A store that
	// is there already is left as it is.
	Above int64

	// For tests: layers smaller than layerLimit, disks that break, and hooks before and after a
	// checkpoint.
	limit        int64
	openLog      func(path string) (wal.Files, error)
	atCheckpoint func(done bool)
}

const (
	defaultProgressInterval = time.Minute
	// defaultQuota is the most that etcd recommends.
	defaultQuota = 8 << 30
)

// setDefaults sets the default of each option that is not set.
func (o *Options) setDefaults() {
	if o.ProgressInterval <= 0 {
		o.ProgressInterval = defaultProgressInterval
	}
	if o.QuotaBytes <= 0 {
		o.QuotaBytes = defaultQuota
	}
	if o.limit <= 0 {
		o.limit = layerLimit
	}
	if o.atCheckpoint == nil {
		o.atCheckpoint = func(bool) {}
	}
}

// Open opens the store at path, or makes one, with its directory. The two files of its write-ahead
// log are beside it. Damaged files are repaired first: see Repairs. The error says what to do.
func Open(path string, o Options) (*Store, error) {
	o.setDefaults()
	files, err := rescue.Open(path, rescue.Options{OpenLog: o.openLog, Restore: o.Restore, Above: o.Above})
	if err != nil {
		return nil, err
	}
	s, err := serve(path, o, files)
	if err != nil {
		return nil, errors.Join(rescue.Advise(path, err), files.Close())
	}
	s.hub = newHub(s)
	s.workers.Go(s.write)
	s.workers.Go(s.expire)
	s.checkpointed.Go(s.checkpointer)
	return s, nil
}

// serve makes a Store of sound files, and puts the writes that are only in the log into the file.
func serve(path string, o Options, files *rescue.Files) (*Store, error) {
	db, err := files.OpenDB()
	if err != nil {
		return nil, err
	}
	s := &Store{
		path: path, options: o, db: db, space: space{file: files.File},
		requests: make(chan *request, maxBatch), leases: newLeases(),
		checkpoints: make(chan *checkpoint, 1), layers: []*layer{newLayer()},
		closing: make(chan struct{}), written: make(chan struct{}), failed: make(chan struct{}),
		ceiling: files.Counters.Ceiling, wal: files.Log, burst: newBurst(),
	}
	s.revision.Store(files.Counters.Revision)
	s.compacted.Store(files.Counters.Compacted)
	if err := s.recover(files); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.repairs = files.Repairs
	return s, nil
}

// recover reads the data that the store keeps in memory, and puts the writes that are only in the
// log into the file.
func (s *Store) recover(files *rescue.Files) error {
	if err := s.db.View(s.loadLeases); err != nil {
		return err
	}
	for _, f := range files.Frames {
		s.replay(f)
	}
	if err := s.measure(); err != nil {
		return err
	}
	if files.State.Damage != nil {
		err := files.ReplaceLog(s.revision.Load(), s.ceiling, s.saveToNewLog)
		if err == nil {
			s.counters.logBytes.Store(s.wal.Size())
		}
		return err
	}
	s.counters.logBytes.Store(s.wal.Size())
	if files.State.Torn {
		// Above all revisions that the lost frame may have promised.
		s.ceiling = max(s.revision.Load(), s.ceiling) + 2*volatileReserve
		files.NoteTorn()
	}
	if len(files.Frames) == 0 && s.ceiling == 0 && files.Counters.LogMarked == 1 {
		return nil // it was stopped cleanly
	}
	return s.saveRecovered()
}

// saveToNewLog puts the writes from a damaged log into the file, and continues with another log.
func (s *Store) saveToNewLog(log *wal.Log, ceiling int64) error {
	s.wal, s.ceiling = log, ceiling
	if err := s.saveRecovered(); err != nil {
		return err
	}
	if s.pending != nil { // the old log is still needed, and cannot be used
		return s.pending.err
	}
	return nil
}

// saveRecovered puts the writes from the log into the file, with the store at a revision that no
// client has received.
func (s *Store) saveRecovered() error {
	if s.ceiling > 0 {
		// Revisions up to the ceiling may have been given out, and the writes with them are lost: a
		// client that knows of such a write has to read everything again.
		s.revision.Store(max(s.revision.Load(), s.ceiling) + 1)
		s.compacted.Store(s.revision.Load())
		s.ceiling = 0
	}
	// The checkpoint names a sequence of the log, which should have begun. It cannot begin yet if
	// that overwrites frames that were read.
	if s.wal.Spare() {
		if err := s.wal.Begin(); err != nil && !durable.IsDiskFull(err) {
			return err
		}
	}
	return s.firstCheckpoint()
}

// firstCheckpoint puts the writes that are only in the log into the file. Without room for that the
// store serves reads: the log's files are still needed, so writes wait until there is room.
func (s *Store) firstCheckpoint() error {
	cp, err := s.newCheckpoint()
	if err == nil {
		err = s.writeCheckpoint(cp)
	}
	switch {
	case err == nil:
		s.layers = []*layer{newLayer()}
		return nil
	case !durable.IsDiskFull(err):
		return err
	}
	slog.Warn("no space left on the datastore's disk, only reads are served", "component", "datastore", "path", s.path, "error", err)
	cp.err, cp.recovered = noSpace(err), true
	close(cp.done)
	s.pending = cp
	s.layers = []*layer{newLayer(), cp.layer}
	s.space.diskFull.Store(true)
	return nil
}

// replay applies a frame of the log to memory. Only while the store opens.
func (s *Store) replay(f format.Frame) {
	s.layers[0].add(f.Records, f.Leases)
	for id, row := range f.Leases {
		if row.TTL > 0 {
			s.leases.restore(id, row)
		}
	}
	for _, rec := range f.Records {
		s.leases.attachLocked(string(rec.Key), rec.Lease)
	}
	for id, row := range f.Leases {
		if row.TTL == 0 {
			s.leases.remove(id)
		}
	}
	s.revision.Store(f.Revision)
	s.compacted.Store(max(s.compacted.Load(), f.Compacted))
	s.ceiling = max(s.ceiling, f.Ceiling)
}

// loadLeases reads the leases and their keys. Only while the store opens.
func (s *Store) loadLeases(tx *bbolt.Tx) error {
	err := tx.Bucket([]byte(format.LeasesBucket)).ForEach(func(k, v []byte) error {
		id, row, err := format.DecodeLease(k, v)
		if err == nil {
			s.leases.restore(id, row)
		}
		return err
	})
	if err != nil {
		return err
	}
	return tx.Bucket([]byte(format.KeysBucket)).ForEach(func(key, row []byte) error {
		h, err := format.DecodeHeader(key, row)
		if err == nil && h.Lease != 0 {
			s.leases.attachLocked(string(key), h.Lease)
		}
		return err
	})
}
