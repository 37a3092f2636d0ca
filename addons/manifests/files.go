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
	// skipSuffix on a file beside a manifest has the manifest left alone, and what it made too.
	skipSuffix = ".skip"
	// chartSuffix is of files that ask for a Helm chart.
	chartSuffix = ".chart.yaml"
	// chartFile makes a folder a chart, whose files are no manifests.
	chartFile = "Chart.yaml"
	// maxFile bounds the size of a manifest in bytes. A definition of a kind has 1 MiB at most, as the API takes no more.
	maxFile = 16 << 20
	// quiet is how long a file must not have changed where the file system cannot tell whether it is open.
	quiet = 2 * time.Second
)

// errBusy is of a file that somebody writes: it may be half of one.
var errBusy = errors.New("it is being written")

// file is a manifest or a chart's as it is on disk.
type file struct {
	name    string // below the directory, with slashes
	sum     string // of all that matters; of one that cannot be read, of why
	objects []*unstructured.Unstructured
	chart   *chart // nil for a manifest
	skipped bool
	err     error  // why it is not understood; what it made before stays
	again   bool   // the error may go without a change of the file
	text    []byte // of one that is not understood, in UTF-8; nil if nothing is known of it
}

// tree is what a directory holds.
type tree struct {
	files []file // by name
	dirs  []string
	// hidden is why there may be more files than are seen: none may be taken for gone.
	hidden error
}

// readTree reads all files of dir, which may be a link, as its folders may be. An error is of a directory that cannot
// be read: then nothing is known of what is missing from it.
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
		t.dirs = append(t.dirs, filepath.Dir(dir)) // where the link may be made to lead elsewhere
	}
	slices.SortFunc(t.files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return t, nil
}

// walk reads the folder at path, which is no link. Its files' names begin with prefix; above are the folders it is in.
func (t *tree) walk(path, prefix string, above []string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		if prefix != "" && errors.Is(err, fs.ErrNotExist) {
			return nil // removed while we look
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
			case err != nil && !isManifest(d.Name()): // of a manifest, readFile says it
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

// watchOnly adds the folders of a chart: a change of theirs is a change of the chart.
func watchOnly(t *tree, chart string) error {
	return filepath.WalkDir(chart, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != chart {
			t.dirs = append(t.dirs, path)
		}
		return nil
	})
}

// isManifest tells by the name.
func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// readFile reads the file name at path; ok says whether it is one of ours.
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
			return file{}, false // removed while we look
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

// unreadable keeps why a file, or the chart that it names, cannot be read.
func (f *file) unreadable(err error) {
	f.err = err
	sum := sha256.Sum256([]byte(err.Error()))
	f.sum = hex.EncodeToString(sum[:])
	switch {
	case errors.Is(err, regular.ErrNotRegular):
		f.text = []byte{} // which names no object
	case !errors.Is(err, regular.ErrTooLarge):
		f.again = true
	}
}

// readWhole reads a file that nobody is writing.
func readWhole(path string) ([]byte, error) {
	in, err := regular.Open(path)
	if errors.Is(err, unix.EAGAIN) {
		return nil, errBusy // somebody has a lease for writing
	}
	if err != nil {
		return nil, err
	}
	defer in.Close()
	// What it says is done with the administrator's rights.
	if _, err := regular.CheckOwner(path); err != nil {
		return nil, err
	}
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	// The kernel gives a lease for reading only while nobody has the file open for writing: fcntl(2).
	switch _, err := unix.FcntlInt(in.Fd(), unix.F_SETLEASE, unix.F_RDLCK); {
	case errors.Is(err, unix.EAGAIN):
		return nil, errBusy
	case err == nil:
		// Only the answer was wanted. A writer who comes now would wait for the lease.
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
	// Whoever began to write after the lease has changed it, or will: then there is another event.
	after, err := in.Stat()
	if err != nil {
		return nil, err
	}
	if after.Size() != int64(len(data)) || !after.ModTime().Equal(info.ModTime()) {
		return nil, errBusy
	}
	return data, nil
}
