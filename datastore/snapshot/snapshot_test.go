package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt"
)

// machine is a data directory with the keys of a control plane.
type machine struct {
	dir    string
	folder Folder
}

func newMachine(t *testing.T) machine {
	dir := t.TempDir()
	m := machine{dir, Folder(filepath.Join(dir, "datastore", "snapshots"))}
	for name, contents := range map[string]string{
		"tls/server-ca.crt": "-----BEGIN CERTIFICATE-----\nMDEy\n-----END CERTIFICATE-----\n", "tls/server-ca.key": "ca key",
		"tls/service-account.key": "tokens' key", "encryption.yaml": "secretbox", ".encryption.yaml.tmp": "half",
	} {
		path := filepath.Join(dir, "server", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(contents), 0o600))
	}
	return m
}

func (m machine) open(t *testing.T) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(filepath.Join(m.dir, "datastore", "state.db"), bolt.Options{Volatile: []string{"/volatile/"}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func (m machine) origin(recipients ...string) Origin {
	return Origin{ServerDir: filepath.Join(m.dir, "server"), Mote: "v1", Kubernetes: "v1.36.3", Node: "n1", Recipients: recipients}
}

func (m machine) save(t *testing.T, name string, s *bolt.Store) Snapshot {
	t.Helper()
	saved, err := m.folder.Save(t.Context(), name, fromStore(s), m.origin(), nil)
	require.NoError(t, err)
	return saved
}

// fromStore returns a Source for a store in this process.
func fromStore(s *bolt.Store) Source {
	return func(ctx context.Context) (*Stream, error) {
		c, err := s.Copy(ctx)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		var b bytes.Buffer
		if _, err := c.WriteTo(&b); err != nil {
			return nil, err
		}
		return &Stream{Revision: c.Revision, Size: c.Size, Reader: &b}, nil
	}
}

// fromPipe returns a Source that does not hold the store in memory, as FromConnection does not
// either.
func fromPipe(s *bolt.Store) Source {
	return func(ctx context.Context) (*Stream, error) {
		c, err := s.Copy(ctx)
		if err != nil {
			return nil, err
		}
		r, w := io.Pipe()
		go func() {
			_, err := c.WriteTo(w)
			w.CloseWithError(errors.Join(err, c.Close()))
		}()
		return &Stream{Revision: c.Revision, Size: c.Size, Reader: r}, nil
	}
}

func put(t *testing.T, s *bolt.Store, key, value string) int64 {
	t.Helper()
	res, err := s.Write(t.Context(), bolt.Write{Key: key, Value: []byte(value)})
	require.NoError(t, err)
	return res.Revision
}

func get(t *testing.T, s *bolt.Store, key string) string {
	t.Helper()
	list, err := s.Range(t.Context(), bolt.Query{Key: key})
	require.NoError(t, err)
	if len(list.KVs) == 0 {
		return ""
	}
	return string(list.KVs[0].Value)
}

func TestSaveAndRestoreElsewhere(t *testing.T) {
	from := newMachine(t)
	store := from.open(t)
	put(t, store, "/a", "1")
	put(t, store, "/volatile/lease", "alive")
	saved := from.save(t, "", store)
	require.True(t, saved.Automatic(), saved.Name)
	require.Equal(t, store.Revision(), saved.Revision)
	require.NotEmpty(t, saved.Cluster)
	info, err := os.Stat(saved.Path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
	info, err = os.Stat(string(from.folder))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o700), info.Mode().Perm())
	later := put(t, store, "/a", "2")

	to := t.TempDir()
	done, err := Restore(t.Context(), saved.Path, to, Keys{}, nil)
	require.NoError(t, err)
	require.Empty(t, done.Replaced)
	restored := machine{dir: to}.open(t)
	require.Equal(t, "1", get(t, restored, "/a"))
	require.Equal(t, "alive", get(t, restored, "/volatile/lease"))
	require.Greater(t, restored.Revision(), later)
	require.Equal(t, restored.Revision(), restored.Compacted(), "who watched the old store must read again")
	require.NoError(t, restored.Check())
	for _, name := range []string{"tls/service-account.key", "encryption.yaml"} {
		want, err := os.ReadFile(filepath.Join(from.dir, "server", name))
		require.NoError(t, err)
		is, err := os.ReadFile(filepath.Join(to, "server", name))
		require.NoError(t, err)
		require.Equal(t, want, is)
	}
	require.NoFileExists(t, filepath.Join(to, "server", ".encryption.yaml.tmp"))
	entries, err := os.ReadDir(filepath.Join(to, "datastore"))
	require.NoError(t, err)
	require.Len(t, entries, 3, "the store, its log, and nothing else")
}

// TestSaveWhileWriting checks that the snapshot has every write that was acknowledged before it,
// and that writers continue meanwhile.
func TestSaveWhileWriting(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	var written [4]atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for w := range written {
		writers.Go(func() {
			for i := int64(1); ctx.Err() == nil; i++ {
				_, err := store.Write(t.Context(), bolt.Write{Key: fmt.Sprintf("/w/%d", w), Value: fmt.Append(nil, i)})
				if err != nil {
					t.Errorf("write: %v", err)
					return
				}
				written[w].Store(i)
			}
		})
	}
	for range 3 {
		var before [4]int64
		for w := range written {
			before[w] = written[w].Load()
		}
		saved := m.save(t, "", store)
		to := t.TempDir()
		_, err := Restore(t.Context(), saved.Path, to, Keys{}, nil)
		require.NoError(t, err)
		restored := machine{dir: to}.open(t)
		for w := range written {
			var i int64
			_, _ = fmt.Sscan(get(t, restored, fmt.Sprintf("/w/%d", w)), &i)
			require.GreaterOrEqual(t, i, before[w])
		}
		require.NoError(t, restored.Check())
	}
	cancel()
	writers.Wait()
}

func TestRestoreSetsAside(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	put(t, store, "/a", "old")
	saved := m.save(t, "first", store)
	last := put(t, store, "/a", "new")
	require.NoError(t, store.Close())
	done, err := Restore(t.Context(), saved.Path, m.dir, Keys{}, nil)
	require.NoError(t, err)
	restored := m.open(t)
	require.Equal(t, "old", get(t, restored, "/a"))
	require.Greater(t, restored.Revision(), last)
	require.NoError(t, restored.Close())

	// The store that was set aside can be opened, too. A second restore of the same file gives out
	// no revision again.
	require.FileExists(t, filepath.Join(done.Replaced[0], "server", "encryption.yaml"))
	aside, err := bolt.Open(filepath.Join(done.Replaced[0], "state.db"), bolt.Options{})
	require.NoError(t, err)
	require.Equal(t, "new", get(t, aside, "/a"))
	require.NoError(t, aside.Close())
	again, err := Restore(t.Context(), saved.Path, m.dir, Keys{}, nil)
	require.NoError(t, err)
	require.NotEqual(t, done.Replaced, again.Replaced)
	require.Greater(t, m.open(t).Revision(), restored.Revision())
}

// TestDamage flips bits, cuts files off and zeroes ranges: each damage must be found, or do no
// harm.
func TestDamage(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	for i := range 200 {
		put(t, store, fmt.Sprintf("/k/%d", i), strings.Repeat("x", i))
	}
	saved := m.save(t, "good", store)
	good, err := os.ReadFile(saved.Path)
	require.NoError(t, err)
	want := readStore(t, m.folder)

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	folder := Folder(t.TempDir())
	path := folder.path("bad" + Extension)
	for i := range 300 {
		bad := bytes.Clone(good)
		switch at := random.IntN(len(bad)); i % 3 {
		case 0:
			bad[at] ^= 1 << random.IntN(8)
		case 1:
			bad = bad[:at]
		case 2:
			clear(bad[at:min(len(bad), at+512)])
		}
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		r, _, err := Newest(string(folder), "")
		if err != nil {
			require.ErrorIs(t, err, ErrNone)
			_, err := Restore(t.Context(), path, t.TempDir(), Keys{}, nil)
			require.ErrorIs(t, err, ErrDamaged)
			continue
		}
		is, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.Equal(t, want, is)
	}
}

func readStore(t *testing.T, f Folder) []byte {
	t.Helper()
	r, _, err := Newest(string(f), "")
	require.NoError(t, err)
	data, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	return data
}

func TestNewestSkipsDamagedAndOthers(t *testing.T) {
	m := newMachine(t)
	_, _, err := Newest(string(m.folder), "")
	require.ErrorIs(t, err, ErrNone)
	store := m.open(t)
	put(t, store, "/a", "1")
	first := m.save(t, "first", store)
	put(t, store, "/a", "2")
	second := m.save(t, "second", store)
	require.NoError(t, os.Truncate(second.Path, second.Size/2))

	r, name, err := Newest(string(m.folder), first.Cluster)
	require.NoError(t, err)
	require.Equal(t, first.Name, name)
	require.NoError(t, r.Close())
	_, _, err = Newest(string(m.folder), "another")
	require.ErrorIs(t, err, ErrNone)
}

func TestPruneKeepsTheNewestGoodOne(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	var all []Snapshot
	for i := range 5 {
		put(t, store, "/a", fmt.Sprint(i))
		all = append(all, m.save(t, "", store))
	}
	named := m.save(t, "mine", store)
	for _, s := range all[2:] {
		require.NoError(t, os.Truncate(s.Path, s.Size-1))
	}
	removed, err := m.folder.Prune(t.Context(), 1, "another")
	require.NoError(t, err)
	require.Empty(t, removed)
	removed, err = m.folder.Prune(t.Context(), 1, named.Cluster)
	require.NoError(t, err)
	require.Equal(t, []string{all[0].Name}, removed)
	list, err := m.folder.List()
	require.NoError(t, err)
	require.Equal(t, []string{named.Name, all[1].Name}, []string{list[0].Name, list[1].Name})
	require.Len(t, list, 5, "those that cannot be read are left alone")
}

func TestSaveRefuses(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	m.save(t, "taken", store)
	_, err := m.folder.Save(t.Context(), "taken", fromStore(store), m.origin(), nil)
	require.ErrorContains(t, err, "there is a taken.tar.zst already")
	_, err = m.folder.Save(t.Context(), "../x", fromStore(store), m.origin(), nil)
	require.ErrorContains(t, err, "cannot be a snapshot's name")

	huge := func(context.Context) (*Stream, error) { return &Stream{Size: 1 << 60}, nil }
	_, err = m.folder.Save(t.Context(), "", huge, m.origin(), nil)
	require.ErrorIs(t, err, ErrNoRoom)
	full := func(context.Context) (*Stream, error) {
		return &Stream{Size: 10, Reader: failing{&fs.PathError{Op: "write", Err: syscall.ENOSPC}}}, nil
	}
	_, err = m.folder.Save(t.Context(), "", full, m.origin(), nil)
	require.ErrorIs(t, err, ErrNoRoom)
	rubbish := func(context.Context) (*Stream, error) {
		return &Stream{Size: 8192, Reader: bytes.NewReader(make([]byte, 8192))}, nil
	}
	_, err = m.folder.Save(t.Context(), "", rubbish, m.origin(), nil)
	require.ErrorContains(t, err, "the store is not sound")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = m.folder.Save(ctx, "", fromStore(store), m.origin(), nil)
	require.ErrorIs(t, err, context.Canceled)

	// No failed save has left a file behind.
	entries, err := os.ReadDir(string(m.folder))
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestSaveAfterACrash(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	require.NoError(t, os.MkdirAll(string(m.folder), 0o755))
	for _, left := range []string{draftFile, checkFile} {
		require.NoError(t, os.WriteFile(m.folder.path(left), []byte("half"), 0o644))
	}
	list, err := m.folder.List()
	require.NoError(t, err)
	require.Empty(t, list)
	saved := m.save(t, "", store)
	entries, err := os.ReadDir(string(m.folder))
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, saved.Name, entries[0].Name())
}

func TestOneSaveAtATime(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	source := func(ctx context.Context) (*Stream, error) {
		_, err := m.folder.Save(ctx, "inner", fromStore(store), m.origin(), nil)
		require.ErrorContains(t, err, "another snapshot is being taken")
		return nil, errors.New("stop")
	}
	_, err := m.folder.Save(t.Context(), "outer", source, m.origin(), nil)
	require.ErrorContains(t, err, "stop")
}

// retime changes the time of a snapshot, as if a machine with another clock had taken it.
func retime(t *testing.T, s Snapshot, at time.Time) {
	t.Helper()
	f, err := openFile(s.Path, Keys{})
	require.NoError(t, err)
	defer f.Close()
	var store bytes.Buffer
	require.NoError(t, f.each(t.Context(), nil, func(p Part, r io.Reader) error {
		if p.Name != storePart {
			return nil
		}
		_, err := io.Copy(&store, r)
		return err
	}))
	m := f.Manifest
	m.Time, m.Parts = at, nil
	var out bytes.Buffer
	stream := &Stream{Revision: m.Revision, Size: int64(store.Len()), Reader: &store}
	require.NoError(t, write(t.Context(), &out, &m, stream, filepath.Join(filepath.Dir(s.Path), "..", "..", "server"), nil, nil))
	require.NoError(t, os.WriteFile(s.Path, out.Bytes(), 0o600))
}
