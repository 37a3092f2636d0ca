package bolt

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/wal"
)

// fill makes a store with n keys of 3 kB in its file, and returns its path.
func fill(t *testing.T, n int) string {
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := Open(path, Options{})
	require.NoError(t, err)
	for i := range n {
		_, err := s.create(t.Context(), fmt.Sprintf("/key/%03d", i), make([]byte, 3000))
		require.NoError(t, err)
	}
	for range 3 { // so the log is not needed any more
		_, err := s.Write(t.Context(), Write{Key: "/last"})
		require.NoError(t, err)
		require.NoError(t, s.Checkpoint(t.Context()))
	}
	require.NoError(t, s.Close())
	return path
}

// pageOf returns the offset in the file of the record of a revision.
func pageOf(t *testing.T, path string, revision int64) int64 {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	image := format.Image{File: bytes.NewReader(b), Size: int64(len(b))}
	commits, err := image.Commits()
	require.NoError(t, err)
	tree := image.Tree(commits[0])
	fail := func(err error) { require.NoError(t, err) }
	tree.Walk(tree.Root, func(e format.Element) {
		if string(e.Key) == format.LogBucket {
			tree.WalkBucket(e.Value, func(format.Element) {}, fail)
		}
	}, fail)
	for id := range tree.Pages {
		for _, rec := range tree.Records(id) {
			if rec.Mod == revision && tree.Visited(id) {
				return int64(id) * format.PageSize
			}
		}
	}
	require.Fail(t, "no record", "%d", revision)
	return 0
}

// openHit opens a store of 100 keys at path and then overwrites the page that has the record of the
// key hit.
func openHit(t *testing.T) (s *Store, path, hit string) {
	t.Helper()
	path = fill(t, 100)
	at := pageOf(t, path, 50)
	s, err := Open(path, Options{})
	require.NoError(t, err)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer file.Close()
	_, err = file.WriteAt(make([]byte, format.PageSize), at)
	require.NoError(t, err)
	return s, path, fmt.Sprintf("/key/%03d", 50-format.FirstRevision-1)
}

// TestDamageWhileOpen checks that a damaged record is not returned, that all others are, and that
// the next start knows of the damage.
func TestDamageWhileOpen(t *testing.T) {
	s, path, hit := openHit(t)
	_, err := s.Range(t.Context(), Query{Key: hit})
	require.ErrorIs(t, err, format.ErrDamaged)
	_, err = s.update(t.Context(), hit, nil, 50)
	require.ErrorIs(t, err, format.ErrDamaged)
	_, err = s.Range(t.Context(), Query{Key: "/key/", End: "/key0"})
	require.ErrorIs(t, err, format.ErrDamaged, "a list does not leave out what it cannot read")
	_, _, err = s.history(Range{Key: "/key/", End: "/key0"}, 2)
	require.ErrorIs(t, err, format.ErrDamaged)
	list, err := s.Range(t.Context(), Query{Key: "/key/099"})
	require.NoError(t, err)
	require.Len(t, list.KVs, 1)
	_, err = s.create(t.Context(), "/other", nil)
	require.NoError(t, err)
	require.ErrorIs(t, s.Check(), format.ErrDamaged)
	require.NoError(t, s.Close())

	_, err = Open(path, Options{})
	require.ErrorContains(t, err, "there is no snapshot")
}

// TestFileIsCutOffWhileOpen checks that the store catches the fault of a read behind the end of the
// file: otherwise the kernel ends the process.
func TestFileIsCutOffWhileOpen(t *testing.T) {
	path := fill(t, 100)
	s, err := Open(path, Options{})
	require.NoError(t, err)
	require.NoError(t, os.Truncate(path, 4*format.PageSize))
	_, err = s.Range(t.Context(), Query{Key: "/key/", End: "/key0"})
	require.ErrorIs(t, err, format.ErrDamaged)
	_, err = s.create(t.Context(), "/key/000", nil)
	require.ErrorIs(t, err, format.ErrDamaged)
	require.Error(t, s.Checkpoint(t.Context()))
	_ = s.Close() // it returns the error of the data that it could not write
}

// TestCheckpointFails checks that the data in the log is safe when the file cannot be written, and
// that nothing is acknowledged after that.
func TestCheckpointFails(t *testing.T) {
	path := fill(t, 10)
	s, err := Open(path, Options{})
	require.NoError(t, err)
	_, err = s.create(t.Context(), "/new", nil)
	require.NoError(t, err)
	readOnly, err := os.Open(path)
	require.NoError(t, err)
	defer readOnly.Close()
	for fd, name := range descriptors(t) { // these descriptors are bbolt's
		if name == path && fd != int(readOnly.Fd()) && fd != int(s.space.file.Fd()) {
			require.NoError(t, unix.Dup3(int(readOnly.Fd()), fd, unix.O_CLOEXEC))
		}
	}
	require.ErrorContains(t, s.Checkpoint(t.Context()), "check the disk")
	<-s.Failed()
	_, err = s.create(t.Context(), "/newer", nil)
	require.ErrorIs(t, err, s.Failure())
	require.NoError(t, s.Close())

	s = open(t, path)
	n, err := s.count(t.Context(), "/new", "")
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	require.Empty(t, s.Repairs())
	require.NoError(t, s.Check())
}

func descriptors(t *testing.T) map[int]string {
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	open := map[int]string{}
	for _, e := range entries {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err == nil {
			open[fd], _ = os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		}
	}
	return open
}

// faulty is a file on a failing disk.
type faulty struct {
	wal.File
	fail *string
}

func (f faulty) ReadAt(b []byte, at int64) (int, error) { return f.or("read", f.File.ReadAt, b, at) }

func (f faulty) WriteAt(b []byte, at int64) (int, error) {
	return f.or("write", f.File.WriteAt, b, at)
}

func (f faulty) or(op string, do func([]byte, int64) (int, error), b []byte, at int64) (int, error) {
	if *f.fail == op {
		return 0, &fs.PathError{Op: op, Path: "log", Err: syscall.EIO}
	}
	return do(b, at)
}

func (f faulty) Sync() error {
	if *f.fail == "sync" {
		return syscall.EIO
	}
	return f.File.Sync()
}

// TestLogFails checks that a disk that refuses to write or to sync ends the store, and that one
// that cannot be read refuses the start. A file that is only unreadable is not repaired.
func TestLogFails(t *testing.T) {
	for _, op := range []string{"write", "sync"} {
		t.Run(op, func(t *testing.T) {
			path := fill(t, 10)
			fail := ""
			o := Options{openLog: func(path string) (wal.Files, error) {
				files, err := wal.OpenFiles(path)
				return wal.Files{faulty{files[0], &fail}, faulty{files[1], &fail}}, err
			}}
			s, err := Open(path, o)
			require.NoError(t, err)
			_, err = s.create(t.Context(), "/acknowledged", nil)
			require.NoError(t, err)
			fail = op
			_, err = s.create(t.Context(), "/refused", nil)
			require.ErrorIs(t, err, syscall.EIO)
			<-s.Failed()
			_ = s.Close() // the disk fails here, too

			fail = "read"
			_, err = Open(path, o)
			require.ErrorContains(t, err, "the disk cannot be read; check it")
			fail = ""
			s, err = Open(path, o)
			require.NoError(t, err)
			n, err := s.count(t.Context(), "/acknowledged", "")
			require.NoError(t, err)
			require.EqualValues(t, 1, n)
			require.NoError(t, s.Check())
			require.NoError(t, s.Close())
		})
	}
}

// TestDamageInTheWriter checks that of the requests that share a transaction only those that meet
// damage are refused, and that the store remembers the damage.
func TestDamageInTheWriter(t *testing.T) {
	s, path, hit := openHit(t)
	require.False(t, s.Damaged())

	gate := make(chan struct{})
	put := func(key string) func(*writeTx) (answer, error) {
		return func(tx *writeTx) (answer, error) { return tx.write(Write{Key: key}) }
	}
	var requests []*request
	for _, apply := range []func(*writeTx) (answer, error){
		func(tx *writeTx) (answer, error) { <-gate; return tx.refuse(nil), nil },
		put("/before"), put(hit),
		func(*writeTx) (answer, error) { panic("a page makes no sense") }, put("/after"),
	} {
		req, err := s.enqueue(t.Context(), apply)
		require.NoError(t, err)
		requests = append(requests, req)
	}
	close(gate)
	for i, damaged := range []bool{false, false, true, true, false} {
		_, err := s.wait(t.Context(), requests[i])
		if damaged {
			require.ErrorIs(t, err, format.ErrDamaged, i)
		} else {
			require.NoError(t, err, i)
		}
	}
	for _, key := range []string{"/before", "/after"} {
		n, err := s.count(t.Context(), key, "")
		require.NoError(t, err)
		require.EqualValues(t, 1, n)
	}
	require.True(t, s.Damaged())
	require.NoError(t, s.Close())
	_, err := Open(path, Options{})
	require.ErrorContains(t, err, "there is no snapshot")
}
