package agent

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// errNotArchive lists the formats of an archive. The content decides whether a file is one, never
// the name.
var errNotArchive = errors.New("not an image archive (docker save or OCI layout; plain, gzip or zstd)")

// OpenArchive opens the archive at path, a regular file or a pipe. It refuses at once a file that
// is missing, empty or no tar, and a directory. The errors do not name path.
func OpenArchive(path string) (*os.File, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && strings.Contains(path, "://"):
		return nil, fmt.Errorf("no such file; mote downloads no archives: run \"curl -fLO %s\" and import the file", path)
	case errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("no such file")
	case err != nil:
		return nil, errors.Unwrap(err)
	case info.IsDir():
		return nil, errors.New("is a directory; pack an OCI layout with \"tar -C DIRECTORY -cf app.tar .\" and import app.tar")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if !info.Mode().IsRegular() {
		return f, nil // a pipe can be read only once: the import checks it
	}
	if err := checkArchive(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// CheckArchive checks whether path is a regular file that holds an archive.
func CheckArchive(path string) error {
	if info, err := os.Stat(path); err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	f, err := OpenArchive(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// checkArchive checks the beginning of f. If f is not compressed, it also checks the names of all
// entries, because the tar reader then skips the content between them. It leaves f at its
// beginning.
func checkArchive(f *os.File) error {
	plain, err := decompress(f)
	if err != nil {
		return err
	}
	defer plain.Close()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	if !plain.compressed {
		err = checkEntries(f)
	}
	_, seekErr := f.Seek(0, io.SeekStart)
	return errors.Join(err, seekErr)
}

// checkEntries looks for the files that make a tar an archive of images.
func checkEntries(r io.Reader) error {
	entries := tar.NewReader(r)
	for {
		entry, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: it has neither manifest.json nor oci-layout, or is cut short", errNotArchive)
		}
		if err != nil {
			return cutShort(err)
		}
		switch filepath.Clean(entry.Name) {
		case "manifest.json", "oci-layout":
			return nil
		}
	}
}

// cutShort explains an error that comes from a file that ends in the middle of an archive.
func cutShort(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the archive is cut short; copy it again")
	}
	return fmt.Errorf("read archive: %w", err)
}

// plainArchive reads the uncompressed tar in an archive.
type plainArchive struct {
	io.Reader
	compressed bool
	close      func() error
}

// Close ends the decompression. The archive itself stays open.
func (p *plainArchive) Close() error { return p.close() }

// decompress returns the tar in archive. It recognises gzip and zstd by the first bytes. Anything
// else must be a plain tar, or it is refused.
func decompress(archive io.Reader) (*plainArchive, error) {
	buffered := bufio.NewReader(archive)
	magic, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	if len(magic) == 0 {
		return nil, errors.New("is empty: not an image archive")
	}
	plain := &plainArchive{Reader: buffered, close: func() error { return nil }}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		reader, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, fmt.Errorf("read gzip archive: %w", err)
		}
		plain = &plainArchive{Reader: reader, compressed: true, close: reader.Close}
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		reader, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("read zstd archive: %w", err)
		}
		plain = &plainArchive{Reader: reader, compressed: true, close: reader.IOReadCloser().Close}
	}
	return plain, plain.checkTar()
}

// tarBlock is the size of a tar's header.
const tarBlock = 512

// checkTar checks the first header.
func (p *plainArchive) checkTar() error {
	buffered := bufio.NewReader(p.Reader)
	p.Reader = buffered
	header, err := buffered.Peek(tarBlock)
	if err == nil {
		_, err = tar.NewReader(bytes.NewReader(header)).Next()
	}
	switch {
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.EOF):
		return errors.Join(errNotArchive, p.close())
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF): // a header may go on after this block
		return errors.Join(fmt.Errorf("read archive: %w", err), p.close())
	}
	return nil
}
