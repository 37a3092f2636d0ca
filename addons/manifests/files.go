package manifests

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mote-k8s/mote/internal/regular"
)

const (
	// skipSuffix marks a file beside a manifest. The manifest and the objects it created then stay
	// unchanged.
	skipSuffix = ".skip"
	// chartSuffix is the suffix of files that define a Helm release.
	chartSuffix = ".chart.yaml"
	// chartFile makes a directory a chart. The files of a chart are not manifests.
	chartFile = "Chart.yaml"
	// maxFile limits the size of a manifest in bytes. A definition of a kind has at most 1 MiB, the
	// limit of the API.
	maxFile = 16 << 20
	// quiet is the time without a change after which a file counts as closed, where the file system
	// cannot report whether it is open.
	quiet = 2 * time.Second
)

// errBusy reports a file that a program is writing. Its content may be incomplete.
var errBusy = errors.New("it is being written")

// file is a manifest, or the file of a chart, as it is on disk.
type file struct {
	name string // path below the directory, with slashes
	// sum covers everything that matters. For a file that cannot be read it covers the reason.
	sum     string
	objects []*unstructured.Unstructured
	chart   *chart // nil for a manifest
	skipped bool
	err     error // why it cannot be parsed; its earlier objects stay
	again   bool  // the error may go away without a change of the file
	// text is the UTF-8 text of a file that cannot be parsed; nil if nothing is known of it.
	text []byte
}

// tree is the content of a directory.
type tree struct {
	files []file // by name
	dirs  []string
	// hidden is the reason why there may be more files than are visible. Then no file counts as
	// removed.
	hidden error
}

// readTree reads all files of dir. dir and its subdirectories may be links. An error means that a
// directory cannot be read. Then it is unknown whether missing files were removed.
func readTree(dir string) (tree, error) {
	var t tree
	root, err := filepath.EvalSymlinks(dir)
	if err == nil {
		err = t.walk(root, "", nil)
	}
	if err != nil {
		return tree{}, fmt.Errorf("read the manifests: %w", err)
	}
	if info, err := os.Lstat(dir); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		t.dirs = append(t.dirs, filepath.Dir(dir)) // the link may be changed there
	}
	slices.SortFunc(t.files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return t, nil
}

// walk reads the directory at path, which is not a link. The names of its files begin with prefix.
// above holds its parent directories.
func (t *tree) walk(path, prefix string, above []string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		if prefix != "" && errors.Is(err, fs.ErrNotExist) {
			return nil // removed during the walk
		}
		return err
	}
	t.dirs = append(t.dirs, path)
	if _, err := os.Stat(filepath.Join(path, chartFile)); err == nil && prefix != "" {
		return watchOnly(t, path)
	}
	above = append(slices.Clip(above), path)
	for _, d := range entries {
		if strings.HasPrefix(d.Name(), ".") {
			continue
		}
		name, at, folder := prefix+d.Name(), filepath.Join(path, d.Name()), d.IsDir()
		if d.Type()&fs.ModeSymlink != 0 {
			to, err := filepath.EvalSymlinks(at)
			var info fs.FileInfo
			if err == nil {
				info, err = os.Stat(to)
			}
			switch {
			case err != nil && !isManifest(d.Name()): // for a manifest, readFile reports it
				t.hidden = errors.Join(t.hidden, fmt.Errorf("follow the link %s: %w", name, err))
			case err == nil && info.IsDir() && slices.Contains(above, to):
				t.hidden = errors.Join(t.hidden, fmt.Errorf("follow the link %s: it leads to a folder that it is in", name))
				continue
			case err == nil && info.IsDir():
				at, folder = to, true
			}
		}
		if folder {
			if err := t.walk(at, name+"/", above); err != nil {
				return err
			}
		} else if f, ok := readFile(name, at); ok {
			t.files = append(t.files, f)
		}
	}
	return nil
}

// watchOnly adds the subdirectories of a chart to the watch: a change in them is a change of the
// chart.
func watchOnly(t *tree, chart string) error {
	return filepath.WalkDir(chart, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != chart {
			t.dirs = append(t.dirs, path)
		}
		return nil
	})
}

// isManifest decides by the name.
func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// readFile reads the file name at path. ok reports whether it is a manifest or a chart's file.
func readFile(name, path string) (f file, ok bool) {
	if !isManifest(filepath.Base(path)) {
		return file{}, false
	}
	f.name = name
	if _, err := os.Lstat(path + skipSuffix); err == nil {
		f.skipped = true
		return f, true
	}
	data, err := readWhole(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := os.Lstat(path); errors.Is(gone, fs.ErrNotExist) {
			return file{}, false // removed during the walk
		}
	}
	if err != nil {
		f.unreadable(err)
		return f, true
	}
	sum := sha256.Sum256(data)
	f.sum = hex.EncodeToString(sum[:])
	if strings.HasSuffix(f.name, chartSuffix) {
		f.readChart(path, data)
	} else {
		f.objects, f.err = parse(data)
	}
	if f.err != nil && f.text == nil {
		if text, err := toUTF8(data); err == nil {
			f.text = []byte(text)
		}
	}
	return f, true
}

// unreadable records why a file, or the chart that it names, cannot be read.
func (f *file) unreadable(err error) {
	f.err = err
	sum := sha256.Sum256([]byte(err.Error()))
	f.sum = hex.EncodeToString(sum[:])
	switch {
	case errors.Is(err, regular.ErrNotRegular):
		f.text = []byte{} // it names no object
	case !errors.Is(err, regular.ErrTooLarge):
		f.again = true
	}
}

// readWhole reads a file that no program is writing.
func readWhole(path string) ([]byte, error) {
	in, err := regular.Open(path)
	if errors.Is(err, unix.EAGAIN) {
		return nil, errBusy // another process has a lease for writing
	}
	if err != nil {
		return nil, err
	}
	defer in.Close()
	// The file's content is applied with the administrator's rights.
	if _, err := regular.CheckOwner(path); err != nil {
		return nil, err
	}
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	// The kernel grants a lease for reading only while no process has the file open for writing:
	// fcntl(2).
	switch _, err := unix.FcntlInt(in.Fd(), unix.F_SETLEASE, unix.F_RDLCK); {
	case errors.Is(err, unix.EAGAIN):
		return nil, errBusy
	case err == nil:
		// The lease itself is not needed. A writer that comes now would wait for its release.
		if _, err := unix.FcntlInt(in.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
			return nil, err
		}
	case time.Since(info.ModTime()) < quiet:
		return nil, errBusy
	}
	data, err := regular.Read(in, maxFile)
	if err != nil {
		return nil, err
	}
	// A writer that started after the lease has changed the file, or will. In the second case
	// another event follows.
	after, err := in.Stat()
	if err != nil {
		return nil, err
	}
	if after.Size() != int64(len(data)) || !after.ModTime().Equal(info.ModTime()) {
		return nil, errBusy
	}
	return data, nil
}
