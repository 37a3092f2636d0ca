package main

import (
	"archive/tar"
	"io"
)

// bombSize is the unpacked size of the bomb: large compared to its file, small compared to a disk.
const bombSize = 2 << 30

// writeBomb writes a tar archive of one file of zeros.
func writeBomb(w io.Writer) error {
	archive := tar.NewWriter(w)
	if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Mode: 0o644, Size: bombSize}); err != nil {
		return err
	}
	if _, err := io.CopyN(archive, zeros{}, bombSize); err != nil {
		return err
	}
	return archive.Close()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
