// Package licenses owns the licence texts of everything that a mote file contains: Go modules, the
// payload's programs and the C libraries linked into them. scripts/build-licenses collects them
// before each build, and the build embeds them compressed. Write prints them.
package licenses

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/klauspost/compress/zstd"
)

// ErrAbsent is returned by a mote that was built without its licences, for example by a plain "go
// build".
var ErrAbsent = errors.New("this mote was built without licence texts; build with scripts/build")

// Write writes the list of components and their licence texts to w.
func Write(w io.Writer) error { return write(w, embedded) }

func write(w io.Writer, files fs.FS) error {
	file, err := files.Open(embeddedFile)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrAbsent
	}
	if err != nil {
		return err
	}
	defer file.Close()
	texts, err := zstd.NewReader(file, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("read embedded licences: %w", err)
	}
	defer texts.Close()
	if _, err := io.Copy(w, texts); err != nil {
		return fmt.Errorf("print embedded licences: %w", err)
	}
	return nil
}
