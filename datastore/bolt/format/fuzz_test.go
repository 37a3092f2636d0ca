package format

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzRecord checks that everything that the decoders accept is encoded to the same bytes.
func FuzzRecord(f *testing.F) {
	rec := &Record{Header: Header{Mod: 7, Create: 5, Version: 2, Lease: 9}, Prev: 6, Key: []byte("key"), Value: []byte("value")}
	f.Add(RevisionKey(7), rec.Encoded())
	f.Add(RevisionKey(9), Lease{TTL: 5, Ends: 100}.Encode())
	f.Add([]byte("key"), rec.Header.Encode())
	f.Fuzz(func(t *testing.T, key, b []byte) {
		if rec, err := DecodeRecord(key, b); err == nil {
			again, err := DecodeRecord(key, rec.Encoded())
			require.NoError(t, err)
			require.Equal(t, rec, again)
		} else {
			require.ErrorIs(t, err, ErrDamaged)
		}
		if rec, err := DecodeUnsummed(b); err == nil {
			require.Len(t, appendRecord(nil, &rec), recordSize(&rec))
		}
		if h, err := DecodeHeader(key, b); err == nil {
			again, err := DecodeHeader(key, h.Encode())
			require.NoError(t, err)
			require.Equal(t, h, again)
		}
		if id, row, err := DecodeLease(key, b); err == nil {
			sameID, again, err := DecodeLease(RevisionKey(id), row.Encode())
			require.NoError(t, err)
			require.Equal(t, id, sameID)
			require.Equal(t, row, again)
		}
	})
}

// FuzzFrame checks that a frame that DecodeFrame accepts is decoded to the same frame again.
func FuzzFrame(f *testing.F) {
	f.Add(Frame{Revision: 7, Compacted: 3, Ceiling: 100, Records: []*Record{
		{Header: Header{Mod: 7, Create: 7, Version: 1, Lease: 5}, Prev: 3, Key: []byte("key"), Value: []byte("value")},
	}, Leases: map[int64]Lease{5: {TTL: 10, Ends: 1000}}}.Append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		decoded, err := DecodeFrame(b)
		if err != nil {
			return
		}
		again, err := DecodeFrame(decoded.Append(nil))
		require.NoError(t, err)
		require.Equal(t, decoded, again)
	})
}
