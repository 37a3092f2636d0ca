// Package wal is a write-ahead log in two files that take turns: what Append has returned from is on the
// disk, for the price of one fdatasync.
//
// It owns the two files and the frames in them, and knows nothing of what the frames say. Its user keeps
// a checkpoint: Rotate moves on to the other file and overwrites what was there, so the checkpoint must
// have all of that by then. Enter through Open. A Log is for one goroutine at a time.
//
// Invariants:
//   - A file is written from its start, frame after frame, and its blocks are kept: once they are all
//     there, a frame changes no metadata of the file system. It grows by writing zeros, a step at a time.
//   - Each use of a file has a sequence number, one above the last; its frames carry it. What is left of
//     an earlier use never passes for a frame.
//   - A frame is written only when the one before is on the disk. So what follows the first frame that is
//     not whole was never acknowledged, unless there is a whole frame behind it: that is damage.
package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrDamaged says that frames were lost that had been on the disk.
var ErrDamaged = errors.New("damaged write-ahead log")

const (
	// A frame's header: checksum of all that follows (4 bytes), length of the payload (4), sequence number
	// (8), offset in the file (8). Frames begin at multiples of align, so that damage can be skipped.
	headerSize = 24
	align      = 8
	// growth is how much of a file is filled with zeros at once. The sync that follows has to write the
	// file's new size and blocks too; later ones only the frame.
	growth = 256 << 10
	// maxFrame bounds a length that is read from a file.
	maxFrame = 64 << 20
)

// Files are the two files of a log.
type Files [2]File

// File is what a log needs of a file. Sync need not write metadata that reading does not need.
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
	// end is where the next frame begins.
	end    int64
	buffer []byte
}

// Open reads the frames whose sequence number is at least from, in order, and returns a log whose next
// frame begins a new sequence: that overwrites frames that were read, so they must be in the checkpoint
// before. The payload that replay gets is valid during the call. Open owns the files only on success.
func Open(files Files, from uint64, replay func(payload []byte) error) (*Log, error) {
	l := &Log{files: files}
	var contents [2]content
	for i, f := range files {
		var err error
		if l.sizes[i], err = f.Size(); err != nil {
			return nil, err
		}
		if contents[i], err = read(f, l.sizes[i], from); err != nil {
			return nil, err
		}
	}
	first, second := contents[0], contents[1]
	if first.seq > second.seq {
		first, second = second, first
	}
	l.seq = max(from, second.seq+1)
	switch {
	case first.seq == 0 && second.seq > from, first.seq != 0 && second.seq != first.seq+1, first.seq > from:
		return nil, fmt.Errorf("%w: it has sequences %d and %d and should begin with %d", ErrDamaged, first.seq, second.seq, from)
	}
	for _, c := range []content{first, second} {
		for _, payload := range c.payloads {
			if err := replay(payload); err != nil {
				return nil, err
			}
		}
	}
	return l, nil
}

// content is what a file has for us; a file without frames of interest has sequence number 0.
type content struct {
	seq      uint64
	payloads [][]byte
}

func read(f File, size int64, from uint64) (content, error) {
	var c content
	data := make([]byte, size)
	if _, err := f.ReadAt(data, 0); err != nil && !errors.Is(err, io.EOF) {
		return c, err
	}
	offset := 0
	for {
		seq, payload, ok := frame(data, offset)
		if !ok || seq < from || c.seq != 0 && seq != c.seq {
			break
		}
		c.seq = seq
		c.payloads = append(c.payloads, payload)
		offset += space(len(payload))
	}
	for at := offset + align; at+headerSize <= len(data); at += align {
		if seq, _, ok := frame(data, at); ok && seq >= from && seq >= c.seq {
			return c, fmt.Errorf("%w: no frame at %d, but one at %d", ErrDamaged, offset, at)
		}
	}
	return c, nil
}

// frame returns the frame at offset if there is a whole one.
func frame(data []byte, offset int) (seq uint64, payload []byte, ok bool) {
	if offset+headerSize > len(data) {
		return 0, nil, false
	}
	head := data[offset : offset+headerSize]
	length := int(binary.BigEndian.Uint32(head[4:]))
	seq = binary.BigEndian.Uint64(head[8:])
	// Cheap tests come first: damage is looked for at every multiple of align.
	if binary.BigEndian.Uint64(head[16:]) != uint64(offset) || seq == 0 || length > maxFrame || offset+headerSize+length > len(data) {
		return 0, nil, false
	}
	whole := data[offset : offset+headerSize+length]
	if checksum(whole[4:]) != binary.BigEndian.Uint32(head) {
		return 0, nil, false
	}
	return seq, whole[headerSize:], true
}

func checksum(b []byte) uint32 {
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}

// space is what a frame occupies.
func space(payload int) int {
	return (headerSize + payload + align - 1) / align * align
}

// Append writes a frame. After an error of the writing (WriteError) nothing has happened, and Append may
// be tried again; after any other the frame may or may not be there for the next Open.
func (l *Log) Append(payload []byte) error {
	n := space(len(payload))
	if cap(l.buffer) < n {
		l.buffer = make([]byte, n)
	}
	b := l.buffer[:n]
	clear(b[headerSize+len(payload):])
	binary.BigEndian.PutUint32(b[4:], uint32(len(payload)))
	binary.BigEndian.PutUint64(b[8:], l.seq)
	binary.BigEndian.PutUint64(b[16:], uint64(l.end))
	copy(b[headerSize:], payload)
	binary.BigEndian.PutUint32(b, checksum(b[4:headerSize+len(payload)]))
	if n > keepBuffer {
		l.buffer = nil
	}
	i := l.seq % 2
	if err := l.grow(int(i), l.end+int64(n)); err != nil {
		return &WriteError{err}
	}
	if _, err := l.files[i].WriteAt(b, l.end); err != nil {
		return &WriteError{err}
	}
	if err := l.files[i].Sync(); err != nil {
		return fmt.Errorf("sync write-ahead log: %w", err)
	}
	l.end += int64(n)
	return nil
}

// keepBuffer is the largest buffer that is kept for the next frame.
const keepBuffer = 256 << 10

// WriteError is an error that left the log as it was.
type WriteError struct{ err error }

func (e *WriteError) Error() string { return fmt.Sprintf("write write-ahead log: %v", e.err) }

// Unwrap returns the cause.
func (e *WriteError) Unwrap() error { return e.err }

// growthStep is how the zeros are written. A write of 256 KiB makes one folio of the page cache, which the
// kernel then takes for dirty as a whole, and accounts so, whenever a frame is written into it.
const growthStep = 4 << 10

// grow fills a file with zeros to where a frame that ends at end has room.
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

// Seq is the sequence number of the frames that are being appended.
func (l *Log) Seq() uint64 { return l.seq }

// Used is how many bytes have been appended since the last Rotate.
func (l *Log) Used() int64 { return l.end }

// Size is how many bytes the files have.
func (l *Log) Size() int64 { return l.sizes[0] + l.sizes[1] }

// Rotate begins the next sequence in the other file. All frames of the sequence before the current one
// must be in the checkpoint.
func (l *Log) Rotate() {
	l.seq++
	l.end = 0
}

// Close closes the files.
func (l *Log) Close() error {
	return errors.Join(l.files[0].Close(), l.files[1].Close())
}
