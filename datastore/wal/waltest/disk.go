// Package waltest has a disk that loses power: each write that was not synced is kept, dropped or
// torn at random.
//
// Enter through New. A Disk is for one goroutine.
package waltest

import (
	"errors"
	"io"
	"math/rand/v2"

	"github.com/mote-k8s/mote/datastore/wal"
)

// sector is the number of bytes that a disk writes as a whole or not at all.
const sector = 512

// Disk holds the two files of a log.
type Disk struct {
	rng   *rand.Rand
	files [2]*file
	// OnSync, if set, is called before each sync, when the written data is not yet safe.
	OnSync func()
	// Fail, if set, may refuse a write or a sync.
	Fail func(op string) error
}

// New returns an empty disk.
func New(rng *rand.Rand) *Disk {
	d := &Disk{rng: rng}
	for i := range d.files {
		d.files[i] = &file{disk: d}
	}
	return d
}

// Files returns the disk's files.
func (d *Disk) Files() wal.Files { return wal.Files{d.files[0], d.files[1]} }

// CutPower returns the disk as it may be after a power cut: of each write that was not synced, any
// of its sectors may be there, whatever the order of the writes. d itself continues.
func (d *Disk) CutPower() *Disk {
	after := New(d.rng)
	for i, f := range d.files {
		data := append([]byte{}, f.safe...)
		order := d.rng.Perm(len(f.unsafe))
		for _, at := range order {
			data = f.unsafe[at].tear(d.rng, data)
		}
		after.files[i].safe = data
		after.files[i].now = append([]byte{}, data...)
	}
	return after
}

// Damage flips a bit of a file at offset.
func (d *Disk) Damage(file int, offset int64) {
	d.files[file].now[offset] ^= 1 << d.rng.IntN(8)
}

// Truncate cuts a file off.
func (d *Disk) Truncate(file int, size int64) { d.files[file].now = d.files[file].now[:size] }

type write struct {
	offset int64
	data   []byte
}

// tear puts all, none or some sectors of w into data.
func (w write) tear(rng *rand.Rand, data []byte) []byte {
	luck := rng.IntN(4)
	for start := int64(0); start < int64(len(w.data)); {
		at := w.offset + start
		end := min(start+sector-at%sector, int64(len(w.data)))
		if luck == 0 || luck > 1 && rng.IntN(2) == 0 {
			data = put(data, w.data[start:end], at)
		}
		start = end
	}
	return data
}

func put(data, b []byte, offset int64) []byte {
	if end := offset + int64(len(b)); end > int64(len(data)) {
		data = append(data, make([]byte, end-int64(len(data)))...)
	}
	copy(data[offset:], b)
	return data
}

type file struct {
	disk   *Disk
	safe   []byte // the content after a power cut
	now    []byte // the content for reads
	unsafe []write
}

func (f *file) ReadAt(p []byte, offset int64) (int, error) {
	if offset >= int64(len(f.now)) {
		return 0, io.EOF
	}
	n := copy(p, f.now[offset:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(p []byte, offset int64) (int, error) {
	n := len(p)
	err := f.fail("write")
	if err != nil {
		n = f.disk.rng.IntN(n + 1)
	}
	w := write{offset: offset, data: append([]byte{}, p[:n]...)}
	f.unsafe = append(f.unsafe, w)
	f.now = put(f.now, w.data, offset)
	return n, err
}

func (f *file) Sync() error {
	if f.disk.OnSync != nil {
		f.disk.OnSync()
	}
	if err := f.fail("sync"); err != nil {
		return err
	}
	f.safe = append(f.safe[:0:0], f.now...)
	f.unsafe = nil
	return nil
}

func (f *file) fail(op string) error {
	if f.disk.Fail == nil {
		return nil
	}
	return f.disk.Fail(op)
}

func (f *file) Size() (int64, error) { return int64(len(f.now)), nil }

func (f *file) Close() error {
	if f.disk == nil {
		return errors.New("closed twice")
	}
	return nil
}
