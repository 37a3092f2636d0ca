// Package wal is a write-ahead log in two files that take turns. Every payload for which Append has
// returned is on the disk, for the price of one fdatasync.
//
// It owns the two files and the frames in them, and does not know the meaning of the payloads. Its
// user keeps a checkpoint: Rotate moves on to the other file and overwrites the frames there, so
// the checkpoint must have all of them by then. Enter through Open. Only one goroutine at a time
// may use a Log.
//
// Invariants:
//   - A file is written from its start, frame after frame, and keeps its blocks: once all blocks
//     are allocated, a frame changes no metadata of the file system. A file grows by writing zeros,
//     a step at a time.
//   - Each use of a file has a sequence number, one above the last; its frames carry it. A frame
//     that is left of an earlier use is never taken for a current one.
//   - A sequence begins with an empty frame, which is on the disk before a checkpoint may name the
//     sequence. So a lost log does not look like an empty one.
//   - A frame is written only when the one before is on the disk. With each frame goes a mark that
//     the log ends there. So nothing after the first frame that is not whole was ever acknowledged,
//     unless a whole frame follows it: that is damage. If neither a frame nor the mark follows the
//     last frame, either a write was torn, or the last frame has been damaged since. Open reports
//     this case as Torn, because the two cannot be told apart.
package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrDamaged means that frames are lost that were on the disk.
var ErrDamaged = errors.New("damaged write-ahead log")

const (
	// A frame's header: checksum of everything after it (4 bytes), length of the payload (4),
	// sequence number (8), offset in the file (8). Frames begin at multiples of align, so that Open
	// can skip damage.
	headerSize = 24
	align      = 8
	// growth is the number of bytes of a file that are filled with zeros at once. The sync after
	// that also has to write the file's new size and blocks; later syncs write only the frame.
	growth = 256 << 10
	// A mark shows that the log ends: a magic number (4 bytes), checksum of sequence number and
	// offset (4).
	markSize  = 8
	markMagic = 0x454e440a
	// maxFrame is the longest payload.
	maxFrame = 64 << 20
)

// errTooLong refuses a frame that is too long for Open to accept.
var errTooLong = errors.New("frame of the write-ahead log is too long")

// Files are the two files of a log.
type Files [2]File

// File has the operations on a file that a log needs. Sync need not write metadata that reading
// does not need.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
	Size() (int64, error)
}

// Log is an open log.
type Log struct {
	files Files
	sizes [2]int64
	seq   uint64
	// begun is true if the sequence's first frame is on the disk.
	begun bool
	// spare is true if the file of the sequence had no frame that Open has read.
	spare bool
	// end is the offset of the next frame.
	end int64
	// unmarked is a place where the mark may be missing.
	unmarked *position
	buffer   []byte
}

type position struct {
	seq    uint64
	offset int64
}

// Create begins a log with sequence number seq. It ignores the previous contents of the files.
func Create(files Files, seq uint64) (*Log, error) {
	l := &Log{files: files, seq: seq, spare: true}
	for i, f := range files {
		var err error
		if l.sizes[i], err = f.Size(); err != nil {
			return nil, err
		}
	}
	return l, l.Begin()
}

func checksum(b []byte) uint32 {
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}

// space returns how many bytes a frame with a payload of this length takes.
func space(payload int) int {
	return (headerSize + payload + align - 1) / align * align
}

func mark(seq uint64, offset int64) []byte {
	b := make([]byte, 16)
	binary.BigEndian.PutUint64(b, seq)
	binary.BigEndian.PutUint64(b[8:], uint64(offset))
	sum := checksum(b)
	binary.BigEndian.PutUint32(b, markMagic)
	binary.BigEndian.PutUint32(b[4:], sum)
	return b[:markSize]
}

// Append writes a frame with a payload, which must not be empty. After a WriteError the log is
// unchanged, and Append may be tried again. After any other error the next Open may or may not find
// the frame.
func (l *Log) Append(payload []byte) error {
	if len(payload) > maxFrame {
		return &WriteError{errTooLong}
	}
	if err := l.Begin(); err != nil {
		return err
	}
	n := space(len(payload)) + markSize
	if cap(l.buffer) < n {
		l.buffer = make([]byte, n)
	}
	b := l.buffer[:n]
	if n > keepBuffer {
		l.buffer = nil
	}
	encode(b, l.seq, l.end, payload)
	if err := l.write(l.seq, b, l.end); err != nil {
		if refused := (*WriteError)(nil); errors.As(err, &refused) {
			l.unmarked = &position{l.seq, l.end}
		}
		return err
	}
	l.unmarked = nil
	l.end += int64(n - markSize)
	return nil
}

// encode fills b with a frame and the mark behind it.
func encode(b []byte, seq uint64, offset int64, payload []byte) {
	end := len(b) - markSize
	clear(b[headerSize+len(payload) : end])
	binary.BigEndian.PutUint32(b[4:], uint32(len(payload)))
	binary.BigEndian.PutUint64(b[8:], seq)
	binary.BigEndian.PutUint64(b[16:], uint64(offset))
	copy(b[headerSize:], payload)
	binary.BigEndian.PutUint32(b, checksum(b[4:headerSize+len(payload)]))
	copy(b[end:], mark(seq, offset+int64(end)))
}

// write puts b on the disk, into the file of a sequence.
func (l *Log) write(seq uint64, b []byte, offset int64) error {
	i := int(seq % 2)
	if err := l.grow(i, offset+int64(len(b))); err != nil {
		return &WriteError{err}
	}
	if _, err := l.files[i].WriteAt(b, offset); err != nil {
		return &WriteError{err}
	}
	if err := l.files[i].Sync(); err != nil {
		return fmt.Errorf("sync write-ahead log: %w", err)
	}
	return nil
}

// keepBuffer is the largest buffer in bytes that is kept for the next frame.
const keepBuffer = 256 << 10

// WriteError is an error that left the log unchanged.
type WriteError struct{ err error }

func (e *WriteError) Error() string { return fmt.Sprintf("write write-ahead log: %v", e.err) }

// Unwrap returns the cause.
func (e *WriteError) Unwrap() error { return e.err }

// growthStep is the size of the writes of zeros. One write of 256 KiB would make one folio of the
// page cache. The kernel then marks and accounts the whole folio as dirty whenever a frame is
// written into it.
const growthStep = 4 << 10

// grow fills a file with zeros until it has room for a frame that ends at end.
func (l *Log) grow(i int, end int64) error {
	if end <= l.sizes[i] {
		return nil
	}
	size := (end + growth - 1) / growth * growth
	zeros := make([]byte, growthStep)
	for at := l.sizes[i]; at < size; at += growthStep {
		if _, err := l.files[i].WriteAt(zeros[:min(growthStep, size-at)], at); err != nil {
			return err
		}
	}
	l.sizes[i] = size
	return nil
}

// firstFrame is the size of the empty frame at the start of a sequence.
const firstFrame = headerSize

// Begin writes the first frame of the sequence, if that has not been done. A checkpoint may then
// name the sequence. Append calls it too, for a log that is not Spare: its checkpoint must be
// written before Begin.
func (l *Log) Begin() error {
	if l.begun {
		return nil
	}
	if err := l.finish(); err != nil {
		return err
	}
	if err := l.begin(l.seq); err != nil {
		return err
	}
	l.begun, l.end = true, firstFrame
	return nil
}

func (l *Log) begin(seq uint64) error {
	b := make([]byte, firstFrame+markSize)
	encode(b, seq, 0, nil)
	return l.write(seq, b, 0)
}

// Spare reports whether Begin overwrites none of the frames that Open has read.
func (l *Log) Spare() bool { return l.spare }

// Seq returns the sequence number of the frames that are being appended.
func (l *Log) Seq() uint64 { return l.seq }

// Used returns how many bytes have been appended since the last Rotate.
func (l *Log) Used() int64 { return max(0, l.end-firstFrame) }

// Size returns the size of both files in bytes.
func (l *Log) Size() int64 { return l.sizes[0] + l.sizes[1] }

// Rotate begins the next sequence in the other file. All frames of the sequence before the current
// one must be in the checkpoint. Its errors are those of Append.
func (l *Log) Rotate() error {
	if err := l.finish(); err != nil {
		return err
	}
	if err := l.begin(l.seq + 1); err != nil {
		return err
	}
	l.seq, l.begun, l.end = l.seq+1, true, firstFrame
	return nil
}

// finish writes the mark again where a refused write may have left some bytes.
func (l *Log) finish() error {
	if l.unmarked == nil {
		return nil
	}
	seq, offset := l.unmarked.seq, l.unmarked.offset
	if err := l.write(seq, mark(seq, offset), offset); err != nil {
		return err
	}
	l.unmarked = nil
	return nil
}

// Close closes the files.
func (l *Log) Close() error {
	err := l.finish()
	if full := (*WriteError)(nil); errors.As(err, &full) {
		err = nil // the frame is not whole, and was refused
	}
	return errors.Join(err, l.files[0].Close(), l.files[1].Close())
}
