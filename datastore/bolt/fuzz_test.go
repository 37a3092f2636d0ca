package bolt

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzRecord: what the decoders take, they write the same again.
func FuzzRecord(f *testing.F) {
	rec := &record{header: header{mod: 7, create: 5, version: 2, lease: 9}, prev: 6, key: []byte("key"), value: []byte("value")}
	f.Add(revisionKey(7), encodeStored(rec))
	f.Add(revisionKey(9), encodeLease(leaseRow{ttl: 5, ends: 100}))
	f.Add([]byte("key"), encodeHeader(rec.header))
	f.Fuzz(func(t *testing.T, key, b []byte) {
		if rec, err := decodeStored(key, b); err == nil {
			again, err := decodeStored(key, encodeStored(&rec))
			require.NoError(t, err)
			require.Equal(t, rec, again)
		} else {
			require.ErrorIs(t, err, ErrDamaged)
		}
		if rec, err := decodeRecord(b); err == nil {
			require.Len(t, appendRecord(nil, &rec), recordSize(&rec))
		}
		if h, err := decodeHeader(key, b); err == nil {
			again, err := decodeHeader(key, encodeHeader(h))
			require.NoError(t, err)
			require.Equal(t, h, again)
		}
		if id, row, err := decodeLease(key, b); err == nil {
			sameID, again, err := decodeLease(revisionKey(id), encodeLease(row))
			require.NoError(t, err)
			require.Equal(t, id, sameID)
			require.Equal(t, row, again)
		}
	})
}

// FuzzImage changes a file at two places, and makes its headers whole again, so that what is behind them is read: whatever is there, it is
// judged without a panic and in the end, and what is sound can be opened.
func FuzzImage(f *testing.F) {
	whole, err := os.ReadFile(filepath.Join("testdata", "format4", "state.db"))
	require.NoError(f, err)
	f.Add(uint32(0), []byte{}, uint32(0), []byte{})
	f.Add(uint32(pageSize+pageHeaderSize+40), []byte{0xff, 0xff}, uint32(3*pageSize+8), []byte{1, 0, 9, 0})
	f.Add(uint32(2*pageSize+10), []byte{0xff, 0xff, 0, 0, 0, 0, 1}, uint32(4*pageSize+12), []byte{7})
	f.Fuzz(func(t *testing.T, at uint32, one []byte, from uint32, two []byte) {
		b := bytes.Clone(whole)
		copy(b[int(at)%len(b):], one)
		copy(b[int(from)%len(b):], two)
		for n := range 2 {
			header := b[n*pageSize+pageHeaderSize:][:headerSize]
			sum := fnv.New64a()
			_, _ = sum.Write(header[:headerSize-8])
			binary.LittleEndian.PutUint64(header[headerSize-8:], sum.Sum64())
		}
		i := image{bytes.NewReader(b), int64(len(b))}
		roots, err := i.roots()
		if err != nil {
			return
		}
		c := i.inspect(roots[0], true)
		for id := range c.pages {
			c.records(id)
		}
		if !c.sound() || c.counters[metaFormat] != Format {
			return
		}
		dir := t.TempDir()
		require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "format4"))))
		path := filepath.Join(dir, "state.db")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		if s, err := Open(path, Options{}); err == nil {
			require.NoError(t, s.Check())
			require.NoError(t, s.Close())
		}
	})
}
