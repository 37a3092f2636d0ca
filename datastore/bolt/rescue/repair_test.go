package rescue_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
)

// ward is a stopped store with 300 keys, to be damaged at a known place. The first byte of a value
// shows when it was written.
type ward struct {
	*testing.T
	path     string
	snapshot []byte // taken before the last change of /key/000 to /key/009
	revision int64  // the last
	image    format.Image
	commits  []format.Commit // the newest first
}

func newWard(t *testing.T) *ward {
	w := &ward{T: t, path: fill(t, 300)}
	s, err := bolt.Open(w.path, bolt.Options{})
	require.NoError(t, err)
	c, err := s.Copy(t.Context())
	require.NoError(t, err)
	var b bytes.Buffer
	_, err = c.WriteTo(&b)
	require.NoError(t, errors.Join(err, c.Close()))
	w.snapshot = b.Bytes()
	for i := range 10 {
		_, err := s.Write(t.Context(), bolt.Write{Key: fmt.Sprintf("/key/%03d", i), Value: append([]byte{1}, make([]byte, 3000)...)})
		require.NoError(t, err)
		if i > 7 {
			require.NoError(t, s.Checkpoint(t.Context()))
		}
	}
	require.NoError(t, s.Close())
	info, err := rescue.Inspect(w.path)
	require.NoError(t, err)
	w.revision = info.Revision
	w.image, w.commits = imageOf(t, w.path)
	return w
}

// bucket returns the value of a bucket.
func (w *ward) bucket(name string) []byte {
	return bucketOf(w.T, w.image.Tree(w.commits[0]), name)
}

// pages returns the pages of a bucket, its root first.
func (w *ward) pages(bucket string) []uint64 {
	first := binary.LittleEndian.Uint64(w.bucket(bucket))
	t := w.image.Tree(w.commits[0])
	t.Walk(first, func(format.Element) {}, func(err error) { require.NoError(w, err) })
	list := []uint64{first}
	for id := range t.Pages {
		if t.Visited(id) && id != first {
			list = append(list, id)
		}
	}
	return list
}

func (w *ward) zero(pages ...uint64) {
	file, err := os.OpenFile(w.path, os.O_RDWR, 0)
	require.NoError(w, err)
	defer file.Close()
	for _, id := range pages {
		_, err := file.WriteAt(make([]byte, format.PageSize), int64(id)*format.PageSize)
		require.NoError(w, err)
	}
}

// open opens the store, with the snapshot or without.
func (w *ward) open(snapshot bool) (*bolt.Store, error) {
	o := bolt.Options{}
	if snapshot {
		o.Restore = func() (io.ReadCloser, string, error) { return io.NopCloser(bytes.NewReader(w.snapshot)), "monday", nil }
	}
	return bolt.Open(w.path, o)
}

// repaired opens the store and returns its only repair. It requires that all keys are unchanged.
func (w *ward) repaired(snapshot bool) rescue.Repair {
	s, err := w.open(snapshot)
	require.NoError(w, err)
	require.Len(w, s.Repairs(), 1)
	list, err := s.Range(w.Context(), bolt.Query{Key: "/key/", End: "/key0"})
	require.NoError(w, err)
	require.EqualValues(w, 300, list.Count)
	for i, kv := range list.KVs {
		age := byte(0)
		if i < 10 {
			age = 1
		}
		if len(kv.Value) == 3000 {
			kv.Value = append([]byte{0}, kv.Value...)
		}
		require.Equal(w, age, kv.Value[0], kv.Key)
	}
	require.NoError(w, s.Check())
	require.NoError(w, s.Close())
	return s.Repairs()[0]
}

// TestRepairs tests each way of repair, and what it loses.
func TestRepairs(t *testing.T) {
	t.Run("index", func(t *testing.T) {
		w := newWard(t)
		w.zero(w.pages(format.KeysBucket)...)
		r := w.repaired(false)
		require.Contains(t, r.What, "rebuilt what was damaged")
		require.Empty(t, r.Lost)
		require.FileExists(t, r.Aside[0])
	})
	t.Run("transaction before", func(t *testing.T) {
		w := newWard(t)
		w.zero(w.commits[0].Root)
		r := w.repaired(false)
		require.Contains(t, r.What, "transaction before, and read the log")
		require.Empty(t, r.Lost)
	})
	t.Run("header", func(t *testing.T) {
		w := newWard(t)
		w.zero(w.commits[0].ID % 2)
		s, err := w.open(false)
		require.NoError(t, err)
		defer func() { require.NoError(t, s.Close()) }()
		require.Empty(t, s.Repairs(), "bbolt has two, and the log has what the older lacks")
		list, err := s.Range(t.Context(), bolt.Query{Key: "/key/009"})
		require.NoError(t, err)
		require.EqualValues(t, 1, list.KVs[0].Value[0])
	})
	t.Run("branches of the log", func(t *testing.T) {
		w := newWard(t)
		w.zero(w.pages(format.LogBucket)[0], w.commits[1].Root)
		r := w.repaired(false)
		require.Contains(t, r.What, "records that its index names")
		require.Empty(t, r.Lost)
	})
	t.Run("record", func(t *testing.T) {
		w := newWard(t)
		files := func() []string { names, _ := filepath.Glob(w.path + "*"); return names }
		before := files()
		h := w.header("/key/150")
		w.zero(uint64(pageOf(t, w.path, h.Mod)/format.PageSize), w.commits[1].Root)
		s, err := w.open(false)
		require.NoError(t, err, "after a clean stop, records are looked at when they are wanted")
		require.ErrorIs(t, s.Check(), format.ErrDamaged)
		require.NoError(t, s.Close())
		_, err = w.open(false)
		require.ErrorContains(t, err, "there is no snapshot; its files are left as they are")
		require.Equal(t, before, files())
		r := w.repaired(true)
		require.Contains(t, r.Lost, "objects, which are as in snapshot monday or gone: /key/150")
	})
	t.Run("snapshot", func(t *testing.T) {
		w := newWard(t)
		w.zero(0, 1)
		_, err := w.open(false)
		require.ErrorContains(t, err, "there is no snapshot")
		s, err := w.open(true)
		require.NoError(t, err)
		require.Contains(t, s.Repairs()[0].What, "took snapshot monday and what the log still has")
		require.NotEmpty(t, s.Repairs()[0].Lost)
		require.Greater(t, s.Revision(), w.revision+rescue.RevisionGap/2)
		list, err := s.Range(t.Context(), bolt.Query{Key: "/key/009"})
		require.NoError(t, err)
		require.EqualValues(t, 1, list.KVs[0].Value[0], "the log had it")
		require.NoError(t, s.Check())
		require.NoError(t, s.Close())
	})
	t.Run("damaged snapshot", func(t *testing.T) {
		w := newWard(t)
		w.zero(0, 1)
		clear(w.snapshot[3*format.PageSize : 9*format.PageSize])
		_, err := w.open(true)
		require.ErrorContains(t, err, "snapshot monday cannot be used")
		require.ErrorContains(t, err, "mote datastore snapshot restore NAME")
	})
	t.Run("snapshot that cannot be unpacked", func(t *testing.T) {
		w := newWard(t)
		w.zero(0, 1)
		for broken, want := range map[error]string{
			errors.New("another sum"):                                  "unpack snapshot monday: another sum; its files are left as they are",
			&fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}: "the disk is full; free some space",
		} {
			_, err := bolt.Open(w.path, bolt.Options{Restore: func() (io.ReadCloser, string, error) {
				return io.NopCloser(io.MultiReader(bytes.NewReader(w.snapshot[:5*format.PageSize]), iotest.ErrReader(broken))), "monday", nil
			}})
			require.ErrorContains(t, err, want)
			require.NoFileExists(t, w.path+".snapshot")
		}
	})
	t.Run("log", func(t *testing.T) { repairLog(t) })
}

func (w *ward) header(key string) format.Header {
	var found format.Header
	w.image.Tree(w.commits[0]).WalkBucket(w.bucket(format.KeysBucket), func(e format.Element) {
		if string(e.Key) == key {
			found, _ = format.DecodeHeader(e.Key, e.Value)
		}
	}, func(err error) { require.NoError(w, err) })
	return found
}

// repairLog checks that the frames before the damage are kept, and that revisions jump with the
// history compacted, so that watches begin again.
func repairLog(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "state.db"))
	for i := range 10 {
		create(t, s, fmt.Sprint("/key/", i), make([]byte, 1000))
	}
	killed := t.TempDir()
	require.NoError(t, os.CopyFS(killed, os.DirFS(dir)))
	log := filepath.Join(killed, "state.wal.1")
	b, err := os.ReadFile(log)
	require.NoError(t, err)
	b[5*1100] ^= 1
	require.NoError(t, os.WriteFile(log, b, 0o600))

	path := filepath.Join(killed, "state.db")
	require.ErrorContains(t, rescue.Examine(path), "damaged write-ahead log: no frame at")
	examined, err := os.ReadFile(log)
	require.NoError(t, err)
	require.True(t, bytes.Equal(b, examined), "an examination repairs nothing")
	s, err = bolt.Open(path, bolt.Options{})
	require.NoError(t, err)
	list, err := s.Range(t.Context(), bolt.Query{Key: "/key/", End: "/key0"})
	require.NoError(t, err)
	require.Len(t, list.KVs, 5)
	require.Greater(t, s.Revision(), int64(rescue.RevisionGap))
	require.Equal(t, s.Revision(), s.Compacted())
	r := s.Repairs()[0]
	require.Contains(t, r.Lost, "after revision 6")
	require.Len(t, r.Aside, 2)
	aside, err := os.ReadFile(r.Aside[1])
	require.NoError(t, err)
	require.True(t, bytes.Equal(b, aside), "what is set aside is as it was")
	create(t, s, "/key/5", nil)
	require.NoError(t, s.Check())
	require.NoError(t, s.Close())
	s = open(t, path)
	require.Equal(t, []rescue.Repair{r}, s.Repairs(), "until it was told")
	info, err := os.Stat(filepath.Join(killed, "state.repairs.json"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	require.NoError(t, s.RepairsReported())
	require.NoError(t, s.RepairsReported())
	require.Equal(t, []rescue.Repair{r}, s.Repairs())
	require.NoError(t, s.Close())
	s = open(t, path)
	require.Empty(t, s.Repairs())
	require.EqualValues(t, 6, count(t, s, "/key/", "/key0"))
}

// TestExamineTornWrite checks that Examine reports the frame that a start would cut off.
func TestExamineTornWrite(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "state.db"))
	for i := range 2 {
		create(t, s, fmt.Sprint("/key/", i), make([]byte, 1000))
	}
	killed := t.TempDir()
	require.NoError(t, os.CopyFS(killed, os.DirFS(dir)))
	path, log := filepath.Join(killed, "state.db"), filepath.Join(killed, "state.wal.1")
	require.NoError(t, rescue.Examine(path))
	require.ErrorContains(t, rescue.Examine(filepath.Join(dir, "state.db")), "another process has it open")
	b, err := os.ReadFile(log)
	require.NoError(t, err)
	clear(b[1500:])
	require.NoError(t, os.WriteFile(log, b, 0o600))
	require.ErrorContains(t, rescue.Examine(path), "a write at the end of the log is not whole")
	require.NoError(t, os.Remove(log))
	require.ErrorContains(t, rescue.Examine(path), "its log is missing")
}
