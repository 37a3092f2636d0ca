package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/datastore/bolt/rescue"
	"github.com/mote-k8s/mote/internal/dirlock"
	"github.com/mote-k8s/mote/internal/durable"
)

// Extension is the end of a snapshot's file name: any tar that supports zstd opens the file.
const Extension = ".tar.zst"

// Files of a Save that is in progress, or was when the machine went down: the snapshot, and the
// store that is extracted from it again for the check. The holder of the directory's lock may
// remove them.
const (
	draftFile = ".new"
	checkFile = ".check"
)

// spare is the number of bytes that must stay free on the disk beside the snapshot itself, because
// other programs need some too.
const spare = 8 << 20

var (
	// ErrNoRoom is returned when the disk has no room for a snapshot.
	ErrNoRoom = errors.New("not enough room")
	// ErrNone is returned when there is no snapshot that can be read.
	ErrNone = errors.New("no good snapshot")
)

// Folder is the directory of a machine's snapshots. The first Save creates it, accessible to its
// owner only.
type Folder string

// Snapshot is a file in a Folder.
type Snapshot struct {
	Name string // without the directory
	Path string
	Size int64
	Manifest
	// Err is the reason why the manifest cannot be read. All other fields are then unknown.
	Err error
}

// automatic matches the names that Save generates.
var automatic = regexp.MustCompile(`^mote-\d{8}T\d{6}Z-\d+\.tar\.zst$`)

// Automatic reports whether Save generated the snapshot's name: Prune removes no other snapshots.
func (s Snapshot) Automatic() bool { return automatic.MatchString(s.Name) }

// Save takes a snapshot. If name is empty, the name is made of the time and the revision. Save
// fails with ErrNoRoom before the disk is full, if it can.
func (f Folder) Save(ctx context.Context, name string, source Source, o Origin, progress Progress) (Snapshot, error) {
	s, err := f.save(ctx, name, source, o, progress)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	if err != nil {
		return Snapshot{}, fmt.Errorf("save snapshot in %s: %w", f, err)
	}
	return s, nil
}

func (f Folder) save(ctx context.Context, name string, source Source, o Origin, progress Progress) (_ Snapshot, err error) {
	if name != "" {
		if name, err = fileName(name); err != nil {
			return Snapshot{}, err
		}
	}
	unlock, err := f.lock(ctx)
	if err != nil {
		return Snapshot{}, err
	}
	defer unlock()
	if err := f.free(name); err != nil { // under the lock, so no other Save can take the name
		return Snapshot{}, err
	}
	defer func() { err = errors.Join(err, f.removeDrafts()) }()
	if err := f.removeDrafts(); err != nil {
		return Snapshot{}, err
	}
	key, err := newSeal(o.Recipients)
	if err != nil {
		return Snapshot{}, err
	}
	m, err := f.draft(ctx, source, o, key, progress)
	if err != nil {
		return Snapshot{}, err
	}
	if err := f.verifyDraft(ctx, key.keys()); err != nil {
		return Snapshot{}, err
	}
	if name == "" {
		name = fmt.Sprintf("mote-%s-%d%s", m.Time.Format("20060102T150405Z"), m.Revision, Extension)
	}
	path := filepath.Join(string(f), name)
	if err := os.Rename(f.path(draftFile), path); err != nil {
		return Snapshot{}, err
	}
	if err := durable.SyncDir(string(f)); err != nil {
		return Snapshot{}, err
	}
	return look(path), nil
}

// draft writes the snapshot under a temporary name.
func (f Folder) draft(ctx context.Context, source Source, o Origin, key *seal, progress Progress) (m Manifest, err error) {
	ctx, cancel := context.WithCancel(ctx) // ends the stream
	defer cancel()
	cluster, err := Fingerprint(o.ServerDir)
	if err != nil {
		return m, err
	}
	store, err := source(ctx)
	if err != nil {
		return m, err
	}
	if err := f.checkRoom(store.Size); err != nil {
		return m, err
	}
	m = Manifest{
		Format: Format, Mote: o.Mote, Kubernetes: o.Kubernetes, Node: o.Node, Cluster: cluster,
		Revision: store.Revision, Time: time.Now().UTC().Truncate(time.Second),
	}
	file, err := os.OpenFile(f.path(draftFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return m, err
	}
	err = write(ctx, file, &m, store, o.ServerDir, key, progress)
	if err == nil {
		err = file.Sync()
	}
	return m, errors.Join(err, file.Close())
}

// verifyDraft reads the draft back as a restore would, and checks its store as a start would.
func (f Folder) verifyDraft(ctx context.Context, keys Keys) error {
	s, err := openFile(f.path(draftFile), keys)
	if err != nil {
		return err
	}
	defer s.Close()
	err = s.each(ctx, nil, func(p Part, r io.Reader) error {
		if p.Name != storePart {
			return nil
		}
		return copyTo(f.path(checkFile), 0o600, r, false)
	})
	if err != nil {
		return err
	}
	info, err := rescue.Inspect(f.path(checkFile))
	if err == nil && info.Revision != s.Revision {
		err = fmt.Errorf("it is of revision %d and not %d", info.Revision, s.Revision)
	}
	if err != nil {
		return fmt.Errorf("the store is not sound, so its copy is of no use: %w; see \"mote datastore check\"", err)
	}
	return nil
}

// checkRoom fails if the disk lacks room for the snapshot, which is smaller than the store, and for
// the store that is extracted from it again.
func (f Folder) checkRoom(store int64) error {
	return checkRoom(string(f), store+store/2+spare)
}

func checkRoom(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("%w: %d MiB are free on the disk of %s, and %d MiB are needed", ErrNoRoom, free>>20, dir, need>>20+1)
	}
	return nil
}

// fileName returns the file name for a name that a user has chosen.
func fileName(name string) (string, error) {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`).MatchString(name) {
		return "", fmt.Errorf("%q cannot be a snapshot's name: letters, digits, dots, dashes and underscores can", name)
	}
	return strings.TrimSuffix(name, Extension) + Extension, nil
}

// free fails if a file of this name exists. The caller must hold the lock.
func (f Folder) free(name string) error {
	if name == "" {
		return nil
	}
	if _, err := os.Lstat(f.path(name)); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("there is a %s already; choose another name", name), err)
	}
	return nil
}

// Find returns the path of a snapshot. name is its name, with or without extension, or its path.
func (f Folder) Find(name string) (string, error) {
	paths := []string{name}
	if !strings.ContainsRune(name, filepath.Separator) {
		paths = []string{f.path(name), f.path(name + Extension), name}
	}
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return filepath.Abs(path)
		}
	}
	return "", fmt.Errorf("there is no snapshot %s, neither in %s nor as a file; \"mote datastore snapshot list\" shows all", name, f)
}

// List returns all snapshots, the newest first. It orders them by revision, because revisions never
// go back and clocks do.
func (f Folder) List() ([]Snapshot, error) {
	entries, err := os.ReadDir(string(f))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var list []Snapshot
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), Extension) && !e.IsDir() {
			list = append(list, look(f.path(e.Name())))
		}
	}
	slices.SortStableFunc(list, func(a, b Snapshot) int {
		return cmp.Or(cmp.Compare(b.Revision, a.Revision), b.Time.Compare(a.Time), cmp.Compare(a.Name, b.Name))
	})
	return list, nil
}

// look reads the manifest of a file.
func look(path string) Snapshot {
	s := Snapshot{Name: filepath.Base(path), Path: path}
	opened, err := openFile(path, Keys{})
	if err != nil {
		s.Err = err
		return s
	}
	defer opened.Close()
	s.Manifest = opened.Manifest
	s.Size = opened.end + int64(footerSize)
	return s
}

// Verify reads a whole snapshot and compares it with its manifest. Of an encrypted snapshot it
// compares the encrypted bytes, unless keys can decrypt it.
func Verify(ctx context.Context, path string, keys Keys, progress Progress) (Manifest, error) {
	s, err := openFile(path, keys)
	if err != nil {
		return Manifest{}, err
	}
	defer s.Close()
	if s.Encryption != nil && len(keys.identities) == 0 {
		return s.Manifest, s.checkSealed(ctx, progress)
	}
	return s.Manifest, s.each(ctx, progress, func(Part, io.Reader) error { return nil })
}

// Prune deletes the automatic snapshots of a cluster except the newest keep and the newest valid
// one. cluster is the Fingerprint of the cluster. Prune keeps the snapshots of other clusters, and
// those that it cannot read, which a later version may have written. It returns the names of the
// deleted snapshots.
func (f Folder) Prune(ctx context.Context, keep int, cluster string) ([]string, error) {
	if _, err := os.Stat(string(f)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	unlock, err := f.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	list, err := f.List()
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(s Snapshot) bool { return !s.Automatic() || s.Err != nil || s.Cluster != cluster })
	var removed []string
	good := false
	for i, s := range list {
		found := good
		if !found {
			_, err := Verify(ctx, s.Path, Keys{}, nil)
			if ctx.Err() != nil {
				return removed, ctx.Err()
			}
			good = err == nil
		}
		if i < keep || good && !found {
			continue
		}
		if err := os.Remove(s.Path); err != nil {
			return removed, fmt.Errorf("prune snapshots: %w", err)
		}
		removed = append(removed, s.Name)
	}
	if err := durable.SyncDir(string(f)); err != nil {
		return removed, fmt.Errorf("prune snapshots: %w", err)
	}
	return removed, nil
}

// Newest returns the store and the name of the newest valid snapshot in the directory dir that
// belongs to the cluster with the Fingerprint cluster. If cluster is empty, a snapshot of any
// cluster will do. It fails with ErrNone if there is none.
func Newest(dir, cluster string) (io.ReadCloser, string, error) {
	list, err := Folder(dir).List()
	if err != nil {
		return nil, "", err
	}
	var encrypted error
	for _, s := range list {
		if s.Err != nil || cluster != "" && s.Cluster != "" && s.Cluster != cluster {
			continue
		}
		if s.Encryption != nil {
			if encrypted == nil {
				encrypted = fmt.Errorf("%w without a private key: restore the newest with \"mote datastore snapshot restore %s --identity FILE\"", ErrNone, s.Name)
			}
			continue
		}
		if _, err := Verify(context.Background(), s.Path, Keys{}, nil); err != nil {
			continue
		}
		r, err := openStorePart(s.Path)
		return r, s.Name, err
	}
	if encrypted != nil {
		return nil, "", encrypted
	}
	return nil, "", fmt.Errorf("%w in %s", ErrNone, dir)
}

// openStorePart returns the store of a snapshot that was verified.
func openStorePart(path string) (io.ReadCloser, error) {
	s, err := openFile(path, Keys{})
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		defer s.Close()
		err := s.each(context.Background(), nil, func(p Part, contents io.Reader) error {
			if p.Name != storePart {
				return nil
			}
			_, err := io.Copy(w, contents)
			return err
		})
		w.CloseWithError(err) // nil means EOF
	}()
	return r, nil
}

func (f Folder) path(name string) string { return filepath.Join(string(f), name) }

// lock creates the directory if necessary, and excludes other calls of Save and Prune.
func (f Folder) lock(ctx context.Context) (unlock func(), err error) {
	// Keep the mode of a directory that exists, which its owner may open to others; the files are
	// 0600 in any case.
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return nil, err
	}
	unlock, err = dirlock.TryLock(string(f))
	if errors.Is(err, dirlock.ErrLocked) {
		err = errors.New("another snapshot is being taken; try again when it is done")
	}
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

func (f Folder) removeDrafts() error {
	for _, name := range []string{draftFile, checkFile} {
		if err := os.Remove(f.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// copyTo creates a file with these contents.
func copyTo(path string, mode fs.FileMode, contents io.Reader, durable bool) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = f.Chmod(mode)
	if err == nil {
		_, err = io.Copy(f, contents)
	}
	if err == nil && durable {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
