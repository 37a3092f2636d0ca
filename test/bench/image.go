package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
)

// The image of the measured pods, and stock containerd's sandbox image. Both contain one static
// program that waits for a signal, so that the bench measures the cluster and not the container.
const (
	appImage   = "bench.mote/app:1"
	pauseImage = "bench.mote/pause:1"
	appName    = "app"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// archive is an OCI image layout in a tar file that is being written.
type archive struct {
	tar   *tar.Writer
	wrote map[string]bool
}

// writeImages writes both images to path, with program as the only file of each.
func writeImages(path, program string) error {
	code, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var buffer bytes.Buffer
	a := archive{tar: tar.NewWriter(&buffer), wrote: map[string]bool{}}
	var manifests []descriptor
	for _, image := range []struct{ ref, name string }{{appImage, appName}, {pauseImage, "pause"}} {
		d, err := a.addImage(image.ref, image.name, code)
		if err != nil {
			return fmt.Errorf("make image %s: %w", image.ref, err)
		}
		manifests = append(manifests, d)
	}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
	})
	if err != nil {
		return err
	}
	if err := a.addFile("index.json", index); err != nil {
		return err
	}
	if err := a.addFile("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := a.tar.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, buffer.Bytes(), 0o644)
}

func (a *archive) addImage(ref, name string, code []byte) (descriptor, error) {
	var none descriptor
	layer, err := layerOf(name, code)
	if err != nil {
		return none, err
	}
	layerBlob, err := a.addBlob("application/vnd.oci.image.layer.v1.tar", layer)
	if err != nil {
		return none, err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/" + name}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerBlob.Digest}},
	})
	if err != nil {
		return none, err
	}
	configBlob, err := a.addBlob("application/vnd.oci.image.config.v1+json", config)
	if err != nil {
		return none, err
	}
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": configBlob, "layers": []descriptor{layerBlob},
	})
	if err != nil {
		return none, err
	}
	d, err := a.addBlob(manifestType, manifest)
	d.Annotations = map[string]string{"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": ref}
	return d, err
}

func layerOf(name string, code []byte) ([]byte, error) {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(code))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(code); err != nil {
		return nil, err
	}
	err := w.Close()
	return buffer.Bytes(), err
}

func (a *archive) addBlob(mediaType string, data []byte) (descriptor, error) {
	sum := sha256.Sum256(data)
	name := hex.EncodeToString(sum[:])
	return descriptor{MediaType: mediaType, Digest: "sha256:" + name, Size: len(data)}, a.addFile("blobs/sha256/"+name, data)
}

func (a *archive) addFile(name string, data []byte) error {
	if a.wrote[name] {
		return nil
	}
	a.wrote[name] = true
	if err := a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := a.tar.Write(data)
	return err
}
