package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
)

// endlessRate limits how much of the test machine's disk the endless layer fills.
const endlessRate = 8 << 20 // bytes a second

// runRegistry serves three images over HTTP on loopback, where runtimes do not use TLS:
//
//	endless:1   its layer claims a terabyte, and sends bytes for as long as the client reads
//	bomb:1      its layer is 2 MB that unpack to 2 GB
//	digest:1    its layer does not have the digest that the manifest names
func runRegistry(ctx context.Context) error {
	bomb, err := bombLayer()
	if err != nil {
		return err
	}
	layers := map[string]descriptor{
		"endless": {Digest: "sha256:" + strings.Repeat("a", 64), Size: 1 << 40},
		"bomb":    {Digest: sum(bomb), Size: int64(len(bomb))},
		"digest":  {Digest: "sha256:" + strings.Repeat("b", 64), Size: 1000},
	}
	config, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": "amd64", "config": map[string]any{"Cmd": []string{"/none"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + strings.Repeat("c", 64)}},
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
		if len(parts) != 3 {
			return // the answer to GET /v2/
		}
		layer, ok := layers[parts[0]]
		if ok && parts[1] == "blobs" && parts[2] == layer.Digest { // what the test counts as the attack
			fmt.Printf("{\"attack\":\"pulls\",\"layer\":%q}\n", parts[0])
		}
		switch {
		case !ok:
			http.NotFound(w, r)
		case parts[1] == "manifests":
			sendManifest(w, r, config, layer)
		case parts[2] == sum(config):
			send(w, r, "application/octet-stream", config)
		case parts[0] == "bomb":
			send(w, r, "application/octet-stream", bomb)
		case parts[0] == "digest":
			send(w, r, "application/octet-stream", make([]byte, layer.Size))
		default:
			sendEndless(w, r, layer.Size)
		}
	})
	return serve(ctx, "127.0.0.1:5001", mux)
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

func sum(b []byte) string {
	digest := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(digest[:])
}

func sendManifest(w http.ResponseWriter, r *http.Request, config []byte, layer descriptor) {
	layer.MediaType = "application/vnd.oci.image.layer.v1.tar+gzip"
	const kind = "application/vnd.oci.image.manifest.v1+json"
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": kind,
		"config": descriptor{"application/vnd.oci.image.config.v1+json", sum(config), int64(len(config))},
		"layers": []descriptor{layer},
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Docker-Content-Digest", sum(manifest))
	send(w, r, kind, manifest)
}

func send(w http.ResponseWriter, r *http.Request, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the client may go away
	}
}

func sendEndless(w http.ResponseWriter, r *http.Request, size int64) {
	w.Header().Set("Content-Length", fmt.Sprint(size))
	if r.Method == http.MethodHead {
		return
	}
	chunk := make([]byte, endlessRate/10)
	for {
		if _, err := w.Write(chunk); err != nil || !rest(r.Context(), time.Second/10) {
			return
		}
	}
}

// bombLayer is a tar header for 2 GB of zeros, and the zeros, compressed.
func bombLayer() ([]byte, error) {
	var out strings.Builder
	zip := gzip.NewWriter(&out)
	if err := writeBomb(zip); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	return []byte(out.String()), nil
}

func discard(r io.Reader) (int64, error) { return io.Copy(io.Discard, r) }
