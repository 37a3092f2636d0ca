// Package images makes the container images that the tests run, as archives, without a registry:
// Debian's packages and small Go programs of this repository. The caller describes an Image and
// saves it in the layout that `docker save` or an OCI tool would write; the same input gives the
// same bytes. Concurrent changes of an Image are not safe.
package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Image is one linux image of the machine's own architecture. Its Files are one layer.
type Image struct {
	Name       string // a reference with a tag, e.g. localhost/test/web:1
	Base       *Image // its layers are below; its other settings are ignored. nil for none
	Files      []File
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string // "" is root
}

// File is one entry of the layer. Directories need no entry of their own.
type File struct {
	Path string // without a leading slash
	Mode int64
	Data []byte
	Link string // the target; Data is ignored then
}

// Save writes an OCI archive to path. The suffix selects the compression: .tar, .tar.gz or
// .tar.zst.
func (im Image) Save(path string) error {
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	w := io.WriteCloser(nopCloser{out})
	switch {
	case strings.HasSuffix(path, ".gz"):
		w = gzip.NewWriter(out)
	case strings.HasSuffix(path, ".zst"):
		if w, err = zstd.NewWriter(out); err != nil {
			return fmt.Errorf("compress %s: %w", path, err)
		}
	}
	if err := im.WriteOCI(w); err != nil {
		return fmt.Errorf("write image %s to %s: %w", im.Name, path, err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write image %s to %s: %w", im.Name, path, err)
	}
	return out.Close()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// ManifestType is the media type of the manifest that Blobs returns.
const ManifestType = "application/vnd.oci.image.manifest.v1+json"

// Blobs returns the image in the form of a registry: the manifest, and the blobs that it names (its
// configuration and its layers).
func (im Image) Blobs() (manifest []byte, blobs [][]byte, err error) {
	layers, config, err := im.blobs()
	if err != nil {
		return nil, nil, err
	}
	var described []any
	for _, layer := range layers {
		described = append(described, descriptor("application/vnd.oci.image.layer.v1.tar", layer))
	}
	manifest = mustJSON(map[string]any{
		"schemaVersion": 2,
		"mediaType":     ManifestType,
		"config":        descriptor("application/vnd.oci.image.config.v1+json", config),
		"layers":        described,
	})
	return manifest, append([][]byte{config}, layers...), nil
}

// WriteOCI writes an OCI image layout as a tar stream.
func (im Image) WriteOCI(w io.Writer) error {
	manifest, blobs, err := im.Blobs()
	if err != nil {
		return err
	}
	entry := descriptor(ManifestType, manifest)
	entry["platform"] = map[string]string{"os": "linux", "architecture": runtime.GOARCH}
	entry["annotations"] = map[string]string{
		"io.containerd.image.name":          im.Name,
		"org.opencontainers.image.ref.name": im.Name[strings.LastIndex(im.Name, ":")+1:],
	}
	index := mustJSON(map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.index.v1+json",
		"manifests":     []any{entry},
	})
	files := []File{
		{Path: "oci-layout", Mode: 0o644, Data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{Path: "index.json", Mode: 0o644, Data: index},
	}
	for _, blob := range append([][]byte{manifest}, blobs...) {
		files = append(files, File{Path: "blobs/sha256/" + digest(blob), Mode: 0o644, Data: blob})
	}
	return writeTar(w, files)
}

// WriteDocker writes the format of older versions of `docker save`: manifest.json, config and
// layers.
func (im Image) WriteDocker(w io.Writer) error {
	layers, config, err := im.blobs()
	if err != nil {
		return err
	}
	configName := digest(config) + ".json"
	files := []File{{Path: configName, Mode: 0o644, Data: config}}
	var names []string
	for _, layer := range layers {
		names = append(names, digest(layer)+"/layer.tar")
		files = append(files, File{Path: names[len(names)-1], Mode: 0o644, Data: layer})
	}
	manifest := mustJSON([]map[string]any{{
		"Config": configName, "RepoTags": []string{im.Name}, "Layers": names,
	}})
	return writeTar(w, append(files, File{Path: "manifest.json", Mode: 0o644, Data: manifest}))
}

func (im Image) blobs() (layers [][]byte, config []byte, err error) {
	if layers, err = im.layers(); err != nil {
		return nil, nil, err
	}
	var ids []string
	for _, layer := range layers {
		ids = append(ids, "sha256:"+digest(layer))
	}
	settings := map[string]any{"Cmd": im.Cmd, "Env": im.Env}
	if im.Entrypoint != nil {
		settings["Entrypoint"] = im.Entrypoint
	}
	if im.User != "" {
		settings["User"] = im.User
	}
	config = mustJSON(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH,
		"config": settings,
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	})
	return layers, config, nil
}

// layers returns the layers as tar archives, the lowest first.
func (im Image) layers() (layers [][]byte, err error) {
	if im.Base != nil {
		if layers, err = im.Base.layers(); err != nil {
			return nil, err
		}
	}
	var layer bytes.Buffer
	if err := writeTar(&layer, im.Files); err != nil {
		return nil, err
	}
	return append(layers, layer.Bytes()), nil
}

func writeTar(w io.Writer, files []File) error {
	tw := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: f.Mode, Size: int64(len(f.Data))}
		if f.Link != "" {
			h = &tar.Header{Typeflag: tar.TypeSymlink, Name: f.Path, Mode: 0o777, Linkname: f.Link}
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if f.Link != "" {
			continue
		}
		if _, err := tw.Write(f.Data); err != nil {
			return err
		}
	}
	return tw.Close()
}

func descriptor(mediaType string, blob []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": "sha256:" + digest(blob), "size": len(blob)}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// mustJSON encodes maps of strings and numbers, for which encoding cannot fail.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
