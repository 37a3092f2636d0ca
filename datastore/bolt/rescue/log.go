package rescue

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/wal"
)

// logPath returns the common prefix of the names of the log's files.
func logPath(path string) string {
	return strings.TrimSuffix(path, filepath.Ext(path)) + ".wal"
}

// logNames returns the names of the log's two files.
func logNames(path string) [2]string { return [2]string{path + ".0", path + ".1"} }

// openLog opens the log's files. They were made before the file that they belong to, so they must
// be there.
func openLog(path string) (wal.Files, error) {
	for _, name := range logNames(path) {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			return wal.Files{}, fmt.Errorf("%w: %s", errNoLog, name)
		}
	}
	return wal.OpenFiles(path)
}

// readOnlyLog opens the log's files for reading alone.
func readOnlyLog(path string) (wal.Files, error) {
	files, err := wal.ReadFiles(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", errNoLog, err)
	}
	return files, err
}

// journal has the frames of the write-ahead log that the file lacks.
type journal struct {
	files  wal.Files
	log    *wal.Log
	found  wal.Found
	frames []format.Frame
}

func (j *journal) close() error { return errors.Join(j.files[0].Close(), j.files[1].Close()) }

// clean reports whether the store was stopped cleanly, according to the log.
func (j *journal) clean() bool {
	return len(j.frames) == 0 && !j.found.Torn && j.found.Damage == nil
}

// readLog reads the frames of the log after those in c.
func (o *opening) readLog(c *contents) (*journal, error) {
	files, err := o.options.OpenLog(logPath(o.path))
	if err != nil {
		return nil, err
	}
	j := &journal{files: files}
	j.log, j.found, err = wal.Open(files, uint64(c.counters.LogSequence), c.counters.LogMarked == 1, func(payload []byte) error {
		f, err := format.DecodeFrame(payload)
		j.frames = append(j.frames, f)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, j.close())
	}
	return j, nil
}

// allFrames returns every frame in the log's files, even if others are missing between them, in the
// order of revisions, and the sequence number to continue with.
func (o *opening) allFrames() ([]format.Frame, uint64, error) {
	files, err := o.options.OpenLog(logPath(o.path))
	if err != nil {
		return nil, 0, err
	}
	var frames []format.Frame
	collect := func(payload []byte) error {
		if f, err := format.DecodeFrame(payload); err == nil {
			frames = append(frames, f)
		}
		return nil
	}
	_, found, err := wal.Open(files, 1, false, collect)
	for _, payload := range found.Behind {
		_ = collect(payload)
	}
	slices.SortStableFunc(frames, func(a, b format.Frame) int { return int(a.Revision - b.Revision) })
	return frames, found.Next, errors.Join(err, files[0].Close(), files[1].Close())
}

// draftLog makes an empty log beside the one at path.
func draftLog(path string, sequence uint64) (*wal.Log, error) {
	draft := path + ".new"
	for _, name := range logNames(draft) {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	files, err := wal.OpenFiles(draft)
	if err != nil {
		return nil, err
	}
	log, err := wal.Create(files, sequence)
	if err != nil {
		return nil, errors.Join(err, files[0].Close(), files[1].Close())
	}
	return log, nil
}

// swapLog puts the log that draftLog made in the place of the one at path.
func swapLog(path string) error {
	for i, name := range logNames(path) {
		if err := os.Rename(logNames(path + ".new")[i], name); err != nil {
			return err
		}
	}
	return nil
}

// resetLog puts an empty log in the place of the one at path.
func resetLog(path string, sequence uint64) error {
	log, err := draftLog(path, sequence)
	if err != nil {
		return err
	}
	if err := log.Close(); err != nil {
		return err
	}
	return errors.Join(swapLog(path), syncDirOf(path))
}

// setAsideLog gives the log's files second names, and returns them.
func setAsideLog(path, stamp string) (names []string, err error) {
	for _, name := range logNames(logPath(path)) {
		aside, err := setAside(name, stamp)
		if err != nil {
			return nil, err
		}
		names = append(names, aside)
	}
	return names, nil
}

// ReplaceLog sets a damaged log aside and puts an empty one in its place. save must put Frames into
// the file, in a checkpoint that names the sequence of the new log. Until then the old log stays
// and the new one waits beside it. revision and ceiling are those after Frames. save gets a ceiling
// above all revisions that may have been given out. After an error the store cannot be served.
func (f *Files) ReplaceLog(revision, ceiling int64, save func(log *wal.Log, ceiling int64) error) error {
	known := max(revision, ceiling)
	for _, payload := range f.State.Behind {
		if f, err := format.DecodeFrame(payload); err == nil {
			known = max(known, f.Revision, f.Ceiling)
		}
	}
	aside, err := setAsideLog(f.path, f.stamp)
	if err != nil {
		return err
	}
	log, err := draftLog(logPath(f.path), f.State.Next)
	if err != nil {
		return err
	}
	err = save(log, known+RevisionGap)
	if err == nil {
		err = swapLog(logPath(f.path))
	}
	if err != nil {
		return errors.Join(err, log.Close())
	}
	f.Log = log
	f.Repairs = reportRepair(f.path, f.Repairs, Repair{
		What:  "set the log aside from where it is damaged: " + oneLine(f.State.Damage),
		Lost:  fmt.Sprintf("what was written after revision %d and not read again; %d transactions before the damage were kept, and %d behind it can be read in the files that were set aside", revision, len(f.Frames), len(f.State.Behind)),
		Aside: aside,
	})
	return errors.Join(syncDirOf(f.path), f.logFiles[0].Close(), f.logFiles[1].Close())
}

// NoteTorn adds a repair for a log whose State is Torn: its end is neither a frame nor a mark.
func (f *Files) NoteTorn() {
	r := Repair{
		Time: time.Now().UTC(), What: "cut off a write at the end of the log that is not whole",
		Lost: "nothing if the machine lost power, for it was never acknowledged; else the last transaction",
	}
	f.Repairs = addUnreported(f.path, f.Repairs, r)
	slog.Warn("datastore repaired, its log did not end well", "component", "datastore", "path", f.path, "what", r.What, "lost", r.Lost)
}

// oneLine is an error's message for a log.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
