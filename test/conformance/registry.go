package conformance

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"

	"github.com/mote-k8s/mote/test/images"
)

// registry serves images by the protocol of
// https://github.com/opencontainers/distribution-spec/blob/main/spec.md, read-only. It never
// changes.
type registry struct {
	manifests map[string][]byte // by REPOSITORY:TAG and REPOSITORY@DIGEST
	blobs     map[string][]byte // by digest
}

func newRegistry(served []images.Image) (*registry, error) {
	r := &registry{manifests: map[string][]byte{}, blobs: map[string][]byte{}}
	for _, im := range served {
		manifest, blobs, err := im.Blobs()
		if err != nil {
			return nil, fmt.Errorf("write image %s: %w", im.Name, err)
		}
		_, name, _ := strings.Cut(im.Name, "/")
		repository, _, _ := strings.Cut(name, ":")
		r.manifests[name] = manifest
		r.manifests[repository+"@"+digest(manifest)] = manifest
		for _, blob := range blobs {
			r.blobs[digest(blob)] = blob
		}
	}
	return r, nil
}

func digest(blob []byte) string {
	sum := sha256.Sum256(blob)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (r *registry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	path, ok := strings.CutPrefix(request.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, request)
		return
	}
	if path == "" {
		return
	}
	var content []byte
	if repository, reference, found := strings.Cut(path, "/manifests/"); found {
		separator := ":"
		if strings.HasPrefix(reference, "sha256:") {
			separator = "@"
		}
		content = r.manifests[repository+separator+reference]
		w.Header().Set("Content-Type", images.ManifestType)
	} else if _, reference, found := strings.Cut(path, "/blobs/"); found {
		content = r.blobs[reference]
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	if content == nil {
		http.NotFound(w, request)
		return
	}
	w.Header().Set("Docker-Content-Digest", digest(content))
	w.Header().Set("Content-Length", fmt.Sprint(len(content)))
	_, _ = w.Write(content) // a client that has left needs no answer
}
