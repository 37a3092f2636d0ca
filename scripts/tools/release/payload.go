package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/klauspost/compress/zstd"
)

// program is a program of the payload. info is nil for one in C.
type program struct {
	name, sha256 string
	info         *debug.BuildInfo
}

// payloadPrograms reads the programs out of the payload that scripts/build-payload has built.
func payloadPrograms(arch string) ([]program, error) {
	path := filepath.Join("agent/payload/files", arch, "payload.tar.zst")
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	unpacked, err := zstd.NewReader(file)
	if err != nil {
		return nil, err
	}
	defer unpacked.Close()
	var programs []program
	for archive := tar.NewReader(unpacked); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return programs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return nil, fmt.Errorf("read %s of %s: %w", header.Name, path, err)
		}
		sum := sha256.Sum256(content)
		programs = append(programs, program{header.Name, hex.EncodeToString(sum[:]), readBuildInfo(content)})
	}
}

// packages lists the packages of p with the settings that p was built with, which its build
// information holds.
func (p program) packages() ([]goPackage, error) {
	flags, env := []string{"-mod=readonly"}, []string{"GOFLAGS="}
	for _, setting := range p.info.Settings {
		switch setting.Key {
		case "-tags":
			flags = append(flags, "-tags="+setting.Value)
		case "GOOS", "GOARCH", "CGO_ENABLED":
			env = append(env, setting.Key+"="+setting.Value)
		}
	}
	return packages(payloadModule, flags, env, p.info.Path)
}
