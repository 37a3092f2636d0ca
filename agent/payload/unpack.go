package payload

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/internal/dirlock"
)

const (
	// programMode is the mode of every unpacked file. The owner of the data directory writes the
	// files.
	programMode = 0o755
	// window is the window size of the compression in scripts/build-payload: zstd --long=24.
	window = 1 << 24
)

// Unpack makes sure that root holds this mote's programs and returns their directory. It verifies
// files that exist already, and writes missing and damaged ones again, each atomically. It removes
// the directories of other versions unless a process uses them.
//
// The calling process keeps the directory in use until it ends. Unpack fails with ErrAbsent if
// there is nothing to unpack. If root is read-only, full or mounted noexec, its error gives advice,
// and it leaves nothing half made.
func Unpack(ctx context.Context, root string) (string, error) {
	a, err := read(embedded, embeddedDir)
	if err != nil {
		return "", err
	}
	return a.unpack(ctx, root)
}

func (a archive) unpack(ctx context.Context, root string) (string, error) {
	dir := filepath.Join(root, a.Archive)
	if err := a.place(ctx, root, dir); err != nil {
		return "", explain(root, err)
	}
	return dir, nil
}

// place makes sure that the directory dir, below root, holds the programs, and marks it as used.
func (a archive) place(ctx context.Context, root, dir string) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := refuseNoexec(root); err != nil {
		return err
	}
	// Most starts find everything in place. They need no lock, and work on a read-only disk.
	used, err := a.use(dir)
	if err != nil {
		return err
	}
	if used && !others(root, a.Archive) {
		return nil
	}

	// The process that unpacks holds this lock, for some 100 ms.
	unlock, err := dirlock.Lock(ctx, root)
	if err != nil {
		return err
	}
	defer unlock()
	// Other versions are removed first, because their space may be needed.
	if err := removeUnused(root, a.Archive); err != nil {
		return err
	}
	if used {
		return nil
	}
	if err := a.write(ctx, dir); err != nil {
		return err
	}
	// Each file was verified when it was written.
	_, err = holdShared(dir)
	return err
}

// use marks dir as in use by this process if all of its files match the manifest, and reports
// whether they do.
func (a archive) use(dir string) (bool, error) {
	// The mark comes before the verification, so that no other process removes the directory in
	// between.
	held, err := holdShared(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	bad, err := a.verify(dir)
	if err != nil || len(bad) > 0 {
		unix.Close(held)
		return false, err
	}
	// The descriptor stays open on purpose: the mark lasts as long as the process.
	return true, nil
}

// write writes every file that is missing or damaged into dir. The caller holds root's lock.
func (a archive) write(ctx context.Context, dir string) (err error) {
	err = os.Mkdir(dir, 0o755)
	if err == nil {
		defer func() {
			if err != nil {
				err = errors.Join(err, os.RemoveAll(dir))
			}
		}()
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	bad, err := a.verify(dir)
	if err != nil {
		return err
	}
	if err := a.extract(ctx, dir, bad); err != nil {
		return err
	}
	return a.removeStrangers(dir)
}

// extract writes the files called names from the archive into dir.
func (a archive) extract(ctx context.Context, dir string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	source, err := a.open()
	if err != nil {
		return fmt.Errorf("open the payload: %w", err)
	}
	defer source.Close()
	decoder, err := zstd.NewReader(source, zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true))
	if err != nil {
		return fmt.Errorf("open the payload: %w", err)
	}
	defer decoder.Close()

	entries := tar.NewReader(decoder)
	left := slices.Clone(names)
	for len(left) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		header, err := entries.Next()
		if err != nil {
			return fmt.Errorf("read the payload: %w", err)
		}
		i := slices.Index(left, header.Name)
		if i < 0 {
			continue
		}
		left = slices.Delete(left, i, i+1)
		if err := a.install(dir, header.Name, entries); err != nil {
			return err
		}
	}
	return nil
}

// install writes one file under a temporary name, compares the written content with the manifest,
// and renames the file. It replaces an existing file. Running programs keep the old one.
func (a archive) install(dir, name string, content io.Reader) (err error) {
	want := a.Files[slices.IndexFunc(a.Files, func(f file) bool { return f.Name == name })]
	path := filepath.Join(dir, name)
	partial := filepath.Join(dir, "."+name+".partial")
	defer func() {
		if err != nil {
			os.Remove(partial)
		}
	}()
	out, err := os.OpenFile(partial, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, programMode)
	if err != nil {
		return err
	}
	hash := sha256.New()
	_, err = io.CopyBuffer(io.MultiWriter(out, hash), content, make([]byte, bufferSize))
	// The umask has removed bits from the mode above.
	err = errors.Join(err, out.Chmod(programMode), out.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != want.SHA256 {
		return fmt.Errorf("the payload in this mote file is damaged: %s has the SHA-256 %s and not %s; get the file again", name, got, want.SHA256)
	}
	// rename does not replace a directory.
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return os.Rename(partial, path)
}
