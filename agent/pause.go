package agent

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// PauseImage is the name of the image whose program holds the namespaces of a pod open. It is never
// pulled.
const PauseImage = "localhost/mote/pause:1"

// pauseArchive returns a tar of an OCI image layout, with one image of one static program, and the
// digest of its manifest. The same program gives the same bytes.
func pauseArchive(c Config) ([]byte, digest.Digest, error) {
	program, err := os.ReadFile(filepath.Join(c.PayloadDir, "pause"))
	if err != nil {
		return nil, "", fmt.Errorf("read the pause program: %w", err)
	}
	layer, err := tarOf(file{"pause", 0o755, program})
	if err != nil {
		return nil, "", err
	}
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   ocispec.ImageConfig{User: "65535:65535", Entrypoint: []string{"/pause"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
	if err != nil {
		return nil, "", fmt.Errorf("encode the pause image: %w", err)
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    descriptor(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageLayer, layer)},
	})
	if err != nil {
		return nil, "", fmt.Errorf("encode the pause image: %w", err)
	}
	top := descriptor(ocispec.MediaTypeImageManifest, manifest)
	top.Platform = &ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	top.Annotations = map[string]string{"io.containerd.image.name": PauseImage}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{top},
	})
	if err != nil {
		return nil, "", fmt.Errorf("encode the pause image: %w", err)
	}
	archive, err := tarOf(
		file{ocispec.ImageLayoutFile, 0o644, []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)},
		blob(layer), blob(config), blob(manifest),
		file{ocispec.ImageIndexFile, 0o644, index},
	)
	return archive, top.Digest, err
}

func descriptor(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

type file struct {
	name string
	mode int64
	data []byte
}

func blob(data []byte) file {
	return file{filepath.Join(ocispec.ImageBlobsDir, "sha256", digest.FromBytes(data).Encoded()), 0o644, data}
}

func tarOf(files ...file) ([]byte, error) {
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		if err := writer.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("write archive: %w", err)
		}
		if _, err := writer.Write(f.data); err != nil {
			return nil, fmt.Errorf("write archive: %w", err)
		}
	}
	if err := writer.Close(); err != nil {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	return buffer.Bytes(), nil
}
