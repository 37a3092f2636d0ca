package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Found describes what Open has found in the files.
type Found struct {
	// Frames is the number of frames that were replayed.
	Frames int
	// Torn is true if neither a frame nor the mark follows the last frame. After a power cut this
	// is a frame that was never acknowledged; otherwise a frame has been damaged.
	Torn bool
	// Damage, an ErrDamaged, means that frames are lost that were on the disk. The frames before
	// them are replayed. Behind has the readable frames after them. Open then returns no Log, and
	// Next is the sequence number for a call of Create.
	Damage error
	Behind [][]byte
	Next   uint64
}

// Open reads the frames with a sequence number of at least from, in order, and returns a log. The
// log's next frame begins a new sequence, except that the log continues the sequence from if that
// has only its first frame. A new sequence may overwrite frames that were read: they must be in the
// checkpoint before that. The payload is valid only during the call of replay. marked is false for
// a log that an older version wrote without marks and first frames. Open owns the files only when
// it returns a log.
func Open(files Files, from uint64, marked bool, replay func(payload []byte) error) (*Log, Found, error) {
	l := &Log{files: files}
	var contents [2]content
	for i, f := range files {
		var err error
		if l.sizes[i], err = f.Size(); err != nil {
			return nil, Found{}, err
		}
		if contents[i], err = read(f, l.sizes[i], from); err != nil {
			return nil, Found{}, err
		}
	}
	last := contents[from%2] // that of from, or of the sequence before it
	first, second := contents[0], contents[1]
	if first.seq > second.seq {
		first, second = second, first
	}
	found := Found{Next: max(from, second.seq+1, first.behindSeq+1, second.behindSeq+1)}
	switch {
	case second.seq == 0 && marked && (last.old == 0 || last.old+2 != from):
		found.Damage = fmt.Errorf("%w: sequence %d is gone", ErrDamaged, from)
	case second.seq == 0:
	case first.seq == 0 && second.seq > from, first.seq != 0 && second.seq != first.seq+1, first.seq > from:
		found.Damage = fmt.Errorf("%w: it has sequences %d and %d and should begin with %d", ErrDamaged, first.seq, second.seq, from)
	case marked && first.seq != 0 && !first.ended:
		first.damage = errors.Join(first.damage, fmt.Errorf("%w: sequence %d ends before its end", ErrDamaged, first.seq))
	}
	for _, c := range []content{first, second} {
		if found.Damage != nil {
			found.Behind = append(found.Behind, c.payloads...)
		}
		for _, payload := range c.payloads {
			if len(payload) == 0 || found.Damage != nil {
				continue
			}
			if err := replay(payload); err != nil {
				return nil, found, err
			}
			found.Frames++
		}
		found.Behind = append(found.Behind, c.behind...)
		found.Damage = errors.Join(found.Damage, c.damage)
	}
	if found.Damage != nil {
		return nil, found, nil
	}
	found.Torn = marked && second.seq != 0 && !second.ended
	if found.Torn {
		l.unmarked = &position{second.seq, int64(second.end)}
	}
	l.seq = found.Next
	if marked && second.seq == from && second.ended && found.Frames == 0 { // the sequence continues
		l.seq, l.begun, l.end = from, true, int64(second.end)
	}
	l.spare = contents[l.seq%2].seq == 0
	return l, found, nil
}

// content is the part of a file that counts for Open. A file without frames of interest has
// sequence number 0.
type content struct {
	seq      uint64
	payloads [][]byte
	end      int  // of the last frame
	ended    bool // by a mark
	// old is the sequence number of a first frame that is older than the frames of interest.
	old uint64
	// damage is set if whole frames follow where there should be none. behind has these frames.
	damage    error
	behind    [][]byte
	behindSeq uint64
}

func read(f File, size int64, from uint64) (content, error) {
	var c content
	data := make([]byte, size)
	if _, err := f.ReadAt(data, 0); err != nil && !errors.Is(err, io.EOF) {
		return c, err
	}
	for {
		seq, payload, ok := frame(data, c.end)
		if ok && seq < from && c.end == 0 {
			c.old = seq
		}
		if !ok || seq < from || c.seq != 0 && seq != c.seq {
			break
		}
		c.seq = seq
		c.payloads = append(c.payloads, payload)
		c.end += space(len(payload))
	}
	if c.seq != 0 && c.end+markSize <= len(data) && string(data[c.end:c.end+markSize]) == string(mark(c.seq, int64(c.end))) {
		c.ended = true
		return c, nil
	}
	for at := c.end + align; at+headerSize <= len(data); at += align {
		seq, payload, ok := frame(data, at)
		if !ok || seq < from || seq < c.seq {
			continue
		}
		if c.damage == nil {
			c.damage = fmt.Errorf("%w: no frame at %d, but one at %d", ErrDamaged, c.end, at)
		}
		c.behind, c.behindSeq = append(c.behind, payload), max(c.behindSeq, seq)
		at += space(len(payload)) - align
	}
	return c, nil
}

// frame returns the frame at offset if it is whole.
func frame(data []byte, offset int) (seq uint64, payload []byte, ok bool) {
	if offset+headerSize > len(data) {
		return 0, nil, false
	}
	head := data[offset : offset+headerSize]
	length := int(binary.BigEndian.Uint32(head[4:]))
	seq = binary.BigEndian.Uint64(head[8:])
	// The cheap tests come first: the search for damage tests every multiple of align.
	if binary.BigEndian.Uint64(head[16:]) != uint64(offset) || seq == 0 || length > maxFrame || offset+headerSize+length > len(data) {
		return 0, nil, false
	}
	whole := data[offset : offset+headerSize+length]
	if checksum(whole[4:]) != binary.BigEndian.Uint32(head) {
		return 0, nil, false
	}
	return seq, whole[headerSize:], true
}
