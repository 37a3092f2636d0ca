package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"

	"github.com/mote-k8s/mote/internal/regular"
)

// A snapshot is a tar archive, compressed with zstd in two frames. The second frame has the
// manifest, the last file of the archive. A third frame, which zstd skips, has the offset and the
// checksum of the second. So a manifest can be read and verified without the rest.
const (
	manifestName = "manifest.json"
	footerMagic  = "motesnap"
	skippable    = 0x184D2A50 // RFC 8878, section 3.1.2
	footerSize   = 4 + 4 + len(footerMagic) + 8 + sha256.Size
	// window is the distance in bytes that zstd looks back. Both sides need this much memory.
	window = 1 << 20
	// maxManifest limits how much is read because a file, which may be damaged, says so.
	maxManifest = 16 << 20
)

// write assembles a snapshot and completes m. It encrypts the first frame with key, unless that is
// nil.
func write(ctx context.Context, w io.Writer, m *Manifest, store *Stream, serverDir string, key *seal, progress Progress) (err error) {
	counter := &countingWriter{w: w}
	var sealed io.WriteCloser = passing{counter}
	if key != nil {
		counter.sum = sha256.New()
		if sealed, err = key.writer(counter); err != nil {
			return err
		}
	}
	// Use one goroutine and little memory: this runs beside a cluster on a small machine.
	frame, err := zstd.NewWriter(sealed, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(window))
	if err != nil {
		return err
	}
	archive := tar.NewWriter(frame)
	contents := progressReader{ctx: ctx, r: store, all: store.Size, progress: progress}
	if err := addPart(archive, m, Part{Name: storePart, Mode: 0o600, Size: store.Size}, &contents); err != nil {
		return err
	}
	if err := addServer(archive, m, serverDir); err != nil {
		return err
	}
	if err := errors.Join(archive.Flush(), frame.Close(), sealed.Close()); err != nil {
		return err
	}
	if key != nil {
		m.Format = FormatEncrypted
		m.Encryption = &Encryption{Recipients: key.texts, SHA256: hex.EncodeToString(counter.sum.Sum(nil))}
	}
	begin := counter.n
	counter.sum = sha256.New()
	frame.Reset(counter)
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	err = archive.WriteHeader(&tar.Header{Name: manifestName, Mode: 0o600, Size: int64(len(data)), ModTime: m.Time})
	if err != nil {
		return err
	}
	if _, err := archive.Write(data); err != nil {
		return err
	}
	if err := errors.Join(archive.Close(), frame.Close()); err != nil {
		return err
	}
	_, err = w.Write(footer(begin, counter.sum.Sum(nil)))
	return err
}

func footer(begin int64, sum []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, skippable)
	b = binary.LittleEndian.AppendUint32(b, uint32(footerSize-8))
	b = append(b, footerMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(begin))
	return append(b, sum...)
}

func addPart(archive *tar.Writer, m *Manifest, p Part, contents io.Reader) error {
	err := archive.WriteHeader(&tar.Header{Name: p.Name, Mode: int64(p.Mode), Size: p.Size, ModTime: m.Time})
	if err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(archive, sum), contents, p.Size); err != nil {
		return fmt.Errorf("copy %s: %w", p.Name, err)
	}
	// Read on after the last byte: a source that verifies its data does so at its end.
	switch n, err := contents.Read(make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("copy %s: it is longer than the %d bytes that it had", p.Name, p.Size)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("copy %s: %w", p.Name, err)
	}
	p.SHA256 = hex.EncodeToString(sum.Sum(nil))
	m.Parts = append(m.Parts, p)
	return nil
}

// addServer adds the files below dir. It skips files with a leading dot, which are temporary files
// of a write in progress or of an interrupted one. It also skips entries that are neither a file
// nor a link to one, and logs them: a snapshot without a stray link is better than no snapshot.
func addServer(archive *tar.Writer, m *Manifest, dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), ".") {
			return err
		}
		below, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		// Follow links: operators keep keys elsewhere, and another machine does not have that
		// place.
		info, err := os.Stat(path)
		dangling := d.Type() == fs.ModeSymlink && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ELOOP))
		switch {
		case dangling, err == nil && !info.Mode().IsRegular():
			slog.Warn("left out of the snapshot, as it is no file and leads to none", "component", "snapshots", "path", path)
			return nil
		case err != nil:
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		p := Part{Name: serverParts + filepath.ToSlash(below), Mode: info.Mode().Perm(), Size: int64(len(data))}
		return addPart(archive, m, p, bytes.NewReader(data))
	})
	if errors.Is(err, fs.ErrNotExist) && len(m.Parts) == 1 {
		return nil // a store without a control plane
	}
	return err
}

// file is an open snapshot.
type file struct {
	*os.File
	Manifest
	begin, end int64 // of the second frame
	keys       Keys
}

// openFile opens a snapshot and reads its manifest. It refuses anything that is not a regular file
// at once. keys decrypt the rest if the snapshot is encrypted.
func openFile(path string, keys Keys) (*file, error) {
	f, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	s := &file{File: f, keys: keys}
	if err := s.readManifest(); err != nil {
		return nil, errors.Join(fmt.Errorf("read snapshot %s: %w", path, err), f.Close())
	}
	return s, nil
}

func (s *file) readManifest() error {
	info, err := s.Stat()
	if err != nil {
		return err
	}
	s.end = info.Size() - int64(footerSize)
	if s.end < 0 {
		return fmt.Errorf("%w: it is too short", ErrDamaged)
	}
	tail := make([]byte, footerSize)
	if _, err := s.ReadAt(tail, s.end); err != nil {
		return err
	}
	begin := int64(binary.LittleEndian.Uint64(tail[16:]))
	if begin < 0 || begin > s.end || s.end-begin > maxManifest || !bytes.Equal(tail[:16], footer(0, nil)[:16]) {
		return fmt.Errorf("%w: it does not end as a snapshot does", ErrDamaged)
	}
	s.begin = begin
	data := make([]byte, s.end-begin)
	if _, err := s.ReadAt(data, begin); err != nil {
		return err
	}
	if sum := sha256.Sum256(data); !bytes.Equal(sum[:], tail[24:]) {
		return fmt.Errorf("%w: the manifest has another sum", ErrDamaged)
	}
	return s.parseManifest(data)
}

func (s *file) parseManifest(frame []byte) error {
	plain, err := decompress(bytes.NewReader(frame))
	if err != nil {
		return err
	}
	defer plain.Close()
	archive := tar.NewReader(io.LimitReader(plain, maxManifest))
	header, err := archive.Next()
	if err != nil {
		return fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	if header.Name != manifestName {
		return fmt.Errorf("%w: it has %s in place of a manifest", ErrDamaged, header.Name)
	}
	if err := json.NewDecoder(archive).Decode(&s.Manifest); err != nil {
		return fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	if s.Format != Format && s.Format != FormatEncrypted {
		return fmt.Errorf("it has format %d, and this version of mote reads %d and %d; use the version that wrote it (%s)",
			s.Format, Format, FormatEncrypted, s.Mote)
	}
	if (s.Format == FormatEncrypted) != (s.Encryption != nil) {
		return fmt.Errorf("%w: its format %d does not fit its manifest", ErrDamaged, s.Format)
	}
	for _, p := range s.Parts {
		below := strings.HasPrefix(p.Name, serverParts) && filepath.IsLocal(p.Name) && p.Name == path.Clean(p.Name)
		if p.Name != storePart && !below {
			return fmt.Errorf("%w: it has a file %q", ErrDamaged, p.Name)
		}
	}
	return nil
}

func decompress(r io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8*window))
}

// each calls fn with every part, and fails unless all parts are there with the right checksums. It
// reads the rest of a part that fn has not read to the end.
func (s *file) each(ctx context.Context, progress Progress, fn func(Part, io.Reader) error) error {
	if err := s.tryEach(ctx, progress, fn); err != nil {
		return fmt.Errorf("read snapshot %s: %w", s.Name(), err)
	}
	return nil
}

func (s *file) tryEach(ctx context.Context, progress Progress, fn func(Part, io.Reader) error) error {
	all := progressReader{ctx: ctx, r: io.NewSectionReader(s, 0, s.begin), all: s.begin, progress: progress}
	opened, err := s.plain(&all)
	if err != nil {
		return damaged(ctx, err)
	}
	plain, err := decompress(opened)
	if err != nil {
		return err
	}
	defer plain.Close()
	archive := tar.NewReader(plain)
	missing := slices.Clone(s.Parts)
	for len(missing) > 0 {
		header, err := archive.Next()
		if err != nil {
			return damaged(ctx, err)
		}
		p := missing[0]
		missing = missing[1:]
		if header.Name != p.Name || header.Size != p.Size {
			return fmt.Errorf("%w: it has %s of %d bytes where %s of %d should be", ErrDamaged, header.Name, header.Size, p.Name, p.Size)
		}
		contents := &sumReader{r: archive, sum: sha256.New()}
		if err := fn(p, contents); err != nil {
			return damaged(ctx, err)
		}
		if _, err := io.Copy(io.Discard, contents); err != nil {
			return damaged(ctx, err)
		}
		if hex.EncodeToString(contents.sum.Sum(nil)) != p.SHA256 {
			return fmt.Errorf("%w: %s has another sum", ErrDamaged, p.Name)
		}
	}
	return nil
}

// damaged turns err into ErrDamaged if the snapshot's data caused it, and not the disk or the
// reader.
func damaged(ctx context.Context, err error) error {
	var path *fs.PathError
	if ctx.Err() != nil || errors.As(err, &path) || errors.Is(err, ErrEncrypted) || errors.Is(err, ErrWrongKey) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

type countingWriter struct {
	w   io.Writer
	n   int64
	sum hash.Hash // nil until the first use
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	if c.sum != nil {
		c.sum.Write(p[:n])
	}
	return n, err
}

// passing is a writer with a Close that does nothing.
type passing struct{ io.Writer }

func (passing) Close() error { return nil }

type sumReader struct {
	r   io.Reader
	sum hash.Hash
}

func (s *sumReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	return n, err
}

// progressReader reports its progress, and ends with its context.
type progressReader struct {
	ctx       context.Context
	r         io.Reader
	done, all int64
	progress  Progress
}

func (r *progressReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	r.done += int64(n)
	if r.progress != nil && n > 0 {
		r.progress(r.done, r.all)
	}
	return n, err
}
