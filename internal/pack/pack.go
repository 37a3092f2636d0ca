// Package pack defines the shipped form of mote: a small launcher with the real program behind it,
// compressed. The whole is one executable file of a third of the size.
//
//	| launcher (ELF) | program (one zstd frame) | footer (64 bytes) |
//
// The footer, big endian: 8 bytes magic, 8 bytes length of the frame, 8 bytes length of the
// program, 32 bytes SHA-256 of the program, 8 bytes magic again. An ELF loader ignores the bytes
// behind its segments.
//
// Open reads a packed file; Program.Place unpacks the program into a cache directory once, so that
// it runs from page cache like any other file. Write makes a packed file. All functions are safe
// with several processes at once: one process, which holds a lock, writes the program to a
// temporary file and renames it.
package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/klauspost/compress/zstd"
)

const (
	footerSize = 64
	magic      = "motepack"
	// window is the largest distance that the frame may refer back: zstd --long=27.
	window = 1 << 27
	// maxProgram limits the size of the program to one that no build of mote reaches, so that a
	// damaged footer cannot fill a disk.
	maxProgram = 1 << 30
)

// ErrPlain is returned for a file without a program behind it.
var ErrPlain = errors.New("not a packed file")

// Program is the program behind the launcher in a packed file.
type Program struct {
	file   io.ReaderAt
	offset int64 // of the frame, bytes
	frame  int64 // length of the frame, bytes
	Size   int64 // size of the program, bytes
	Sum    [sha256.Size]byte
}

// Open finds the program in file, whose length is size bytes. It returns ErrPlain when there is
// none.
func Open(file io.ReaderAt, size int64) (*Program, error) {
	if size < footerSize {
		return nil, ErrPlain
	}
	footer := make([]byte, footerSize)
	if _, err := file.ReadAt(footer, size-footerSize); err != nil {
		return nil, fmt.Errorf("read footer: %w", err)
	}
	if string(footer[:8]) != magic || string(footer[56:]) != magic {
		return nil, ErrPlain
	}
	p := &Program{
		file:  file,
		frame: int64(binary.BigEndian.Uint64(footer[8:])),
		Size:  int64(binary.BigEndian.Uint64(footer[16:])),
		Sum:   [sha256.Size]byte(footer[24:56]),
	}
	p.offset = size - footerSize - p.frame
	if p.frame <= 0 || p.offset <= 0 || p.Size <= 0 || p.Size > maxProgram {
		return nil, errors.New("the file is damaged: its footer makes no sense; copy it again")
	}
	return p, nil
}

// Place returns the path of the unpacked program below root: root/<sha256>/<name>. If it does not
// exist, Place unpacks it first. A file of the right length counts as correct: it got its name only
// after it was verified and on disk.
func (p *Program) Place(root, name string) (string, error) {
	dir := filepath.Join(root, hex.EncodeToString(p.Sum[:]))
	path := filepath.Join(dir, name)
	if p.placed(path) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if info, err := os.Lstat(dir); err != nil {
		return "", err
	} else if !info.IsDir() || !ours(info) {
		return "", fmt.Errorf("%s belongs to another user, who could change the program; remove it", dir)
	}
	lock, err := lockDir(dir, syscall.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	// Another process may have unpacked it while this one waited.
	if !p.placed(path) {
		if err := p.write(dir, path); err != nil {
			return "", err
		}
	}
	removeOthers(root, filepath.Base(dir))
	return path, nil
}

func (p *Program) placed(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular() && info.Size() == p.Size && ours(info)
}

// lockDir locks the file ".lock" in dir, with flock's how. The kernel releases the lock when the
// file is closed or its process is killed.
func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// write unpacks to a temporary file, verifies it, and renames it once it is on disk.
func (p *Program) write(dir, path string) (err error) {
	// The file of a killed process is overwritten.
	temp, err := os.OpenFile(filepath.Join(dir, ".unpacking"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o700)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temp.Name()))
		}
	}()
	defer temp.Close()
	sum := sha256.New()
	n, err := p.copyTo(io.MultiWriter(temp, sum))
	if err != nil {
		return fmt.Errorf("unpack %s: %w", path, err)
	}
	if n != p.Size || !bytes.Equal(sum.Sum(nil), p.Sum[:]) {
		return errors.New("the file is damaged: its program does not have the checksum that it should; copy it again")
	}
	if err := temp.Chmod(0o755); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

func (p *Program) copyTo(w io.Writer) (int64, error) {
	d, err := zstd.NewReader(io.NewSectionReader(p.file, p.offset, p.frame),
		zstd.WithDecoderMaxWindow(window), zstd.WithDecoderConcurrency(2))
	if err != nil {
		return 0, err
	}
	defer d.Close()
	return io.Copy(w, io.LimitReader(d, p.Size+1))
}

// ours reports whether only this user can have created the file: a file of another user must not
// run with this user's rights.
func ours(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid() && info.Mode().Perm()&0o022 == 0
}

// removeOthers removes the directories of other versions below root that no process runs from. One
// that cannot be removed stays until the next version's first start: the requested program is
// unpacked already.
func removeOthers(root, keep string) {
	used := map[string]bool{keep: true}
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return
	}
	for _, link := range links {
		if exe, err := os.Readlink(link); err == nil {
			used[filepath.Base(filepath.Dir(exe))] = true
		}
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return
	}
	for _, e := range entries {
		if len(e.Name()) == 2*sha256.Size && !used[e.Name()] {
			removeIdle(filepath.Join(root, e.Name()))
		}
	}
}

// removeIdle removes dir unless another process is unpacking into it.
func removeIdle(dir string) {
	lock, err := lockDir(dir, syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil {
		return
	}
	defer lock.Close()
	_ = os.RemoveAll(dir)
}

// Remove removes an unpacked program, with the directories that Place created. It keeps any file
// whose path Place cannot have created. Processes that run the program continue.
func Remove(path string) error {
	dir := filepath.Dir(path)
	if name, err := hex.DecodeString(filepath.Base(dir)); err != nil || len(name) != sha256.Size {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	// Other versions may still be in use; then the directory is not empty.
	if err := os.Remove(filepath.Dir(dir)); err != nil && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}

// Write makes a packed file of a launcher, a program, and the program compressed as one zstd frame
// with a window of at most 128 MiB. It checks that the frame holds the program.
func Write(w io.Writer, launcher, program io.Reader, frame []byte) error {
	sum := sha256.New()
	size, err := io.Copy(sum, program)
	if err != nil {
		return fmt.Errorf("read program: %w", err)
	}
	p := &Program{file: bytes.NewReader(frame), frame: int64(len(frame)), Size: size, Sum: [sha256.Size]byte(sum.Sum(nil))}
	check := sha256.New()
	if _, err := p.copyTo(check); err != nil || !bytes.Equal(check.Sum(nil), p.Sum[:]) {
		return errors.Join(errors.New("the frame does not hold the program"), err)
	}
	if _, err := io.Copy(w, launcher); err != nil {
		return fmt.Errorf("write launcher: %w", err)
	}
	footer := []byte(magic)
	footer = binary.BigEndian.AppendUint64(footer, uint64(p.frame))
	footer = binary.BigEndian.AppendUint64(footer, uint64(p.Size))
	footer = append(append(footer, p.Sum[:]...), magic...)
	for _, part := range [][]byte{frame, footer} {
		if _, err := w.Write(part); err != nil {
			return fmt.Errorf("write packed file: %w", err)
		}
	}
	return nil
}
