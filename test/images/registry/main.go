// Command registry serves the OCI archive /image.tar under any name and tag, as a private registry
// does: a client needs the user and the password of the environment variables REGISTRY_USER and
// REGISTRY_PASSWORD. It listens on the loopback, port 5000, for a pod on the host's network:
// containerd uses such a registry without TLS.
package main

import (
	"archive/tar"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"time"
)

const (
	address      = "127.0.0.1:5000"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func serve() error {
	blobs, manifest, err := load("/image.tar")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/", func(w http.ResponseWriter, r *http.Request) {
		dir, reference := path.Split(r.URL.Path)
		if r.URL.Path == "/v2/" {
			return
		}
		kind := path.Base(dir)
		if kind == "manifests" && !strings.HasPrefix(reference, "sha256:") {
			reference = manifest
		}
		blob, ok := blobs[reference]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if kind == "manifests" {
			w.Header().Set("Content-Type", manifestType)
		}
		w.Header().Set("Docker-Content-Digest", reference)
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		_, _ = w.Write(blob) // a client that has left needs no answer
	})
	srv := &http.Server{Addr: address, Handler: guarded(mux), ReadHeaderTimeout: 10 * time.Second}
	return srv.ListenAndServe()
}

func guarded(next http.Handler) http.Handler {
	wantUser, wantPassword := os.Getenv("REGISTRY_USER"), os.Getenv("REGISTRY_PASSWORD")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if subtle.ConstantTimeCompare([]byte(user+":"+password), []byte(wantUser+":"+wantPassword)) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// load reads the archive's blobs by digest, and the digest of its manifest.
func load(name string) (blobs map[string][]byte, manifest string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	blobs = map[string][]byte{}
	var index struct {
		Manifests []struct{ Digest string }
	}
	for archive := tar.NewReader(f); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, "", fmt.Errorf("read %s: %w", name, err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			return nil, "", fmt.Errorf("read %s: %w", name, err)
		}
		if header.Name == "index.json" {
			if err := json.Unmarshal(data, &index); err != nil {
				return nil, "", fmt.Errorf("read index of %s: %w", name, err)
			}
		}
		blobs["sha256:"+path.Base(header.Name)] = data
	}
	if len(index.Manifests) != 1 {
		return nil, "", fmt.Errorf("%s holds %d images, want 1", name, len(index.Manifests))
	}
	return blobs, index.Manifests[0].Digest, nil
}
