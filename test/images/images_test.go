package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func small() Image {
	return Image{
		Name: "localhost/test/small:1",
		Cmd:  []string{"/hello"},
		Files: []File{
			{Path: "hello", Mode: 0o755, Data: []byte("#!/bin/sh\n")},
			{Path: "hi", Link: "hello"},
		},
	}
}

func TestArchivesHoldTheirBlobs(t *testing.T) {
	for name, write := range map[string]func(Image, io.Writer) error{
		"oci": Image.WriteOCI, "docker": Image.WriteDocker,
	} {
		t.Run(name, func(t *testing.T) {
			var first, second bytes.Buffer
			if err := write(small(), &first); err != nil {
				t.Fatal(err)
			}
			if err := write(small(), &second); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(first.Bytes(), second.Bytes()) {
				t.Error("the same image gave two different archives")
			}
			entries := names(t, &first)
			want := map[string]string{"oci": "index.json", "docker": "manifest.json"}[name]
			if !slices.Contains(entries, want) {
				t.Errorf("archive holds %v, want %s in it", entries, want)
			}
		})
	}
}

// TestBaseLiesBelow checks that an image has the layers of its base, unchanged, below its own
// layer, and only its own settings.
func TestBaseLiesBelow(t *testing.T) {
	base := small()
	im := Image{
		Base: &base, Entrypoint: []string{"/hello"}, Cmd: []string{"there"}, User: "1234",
		Files: []File{{Path: "more", Mode: 0o644, Data: []byte("more\n")}},
	}
	_, below, err := base.Blobs()
	if err != nil {
		t.Fatal(err)
	}
	_, blobs, err := im.Blobs()
	if err != nil {
		t.Fatal(err)
	}
	if len(blobs) != 3 || !bytes.Equal(blobs[1], below[1]) {
		t.Fatalf("%d blobs, want a configuration, the base's layer and one more", len(blobs))
	}
	if got := names(t, bytes.NewBuffer(blobs[2])); !slices.Equal(got, []string{"more"}) {
		t.Errorf("the upper layer holds %q", got)
	}
	var config struct {
		Config struct {
			Entrypoint, Cmd []string
			User            string
		}
		Rootfs struct {
			Diffs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(blobs[0], &config); err != nil {
		t.Fatal(err)
	}
	if len(config.Rootfs.Diffs) != 2 || config.Config.Entrypoint[0] != "/hello" || config.Config.Cmd[0] != "there" || config.Config.User != "1234" {
		t.Errorf("configuration %s", blobs[0])
	}
}

func TestSaveRefusesToOverwrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image.tar.zst")
	if err := small().Save(path); err != nil {
		t.Fatal(err)
	}
	if err := small().Save(path); err == nil {
		t.Error("second Save to the same path succeeded")
	}
}

func names(t *testing.T, r io.Reader) []string {
	t.Helper()
	var out []string
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

func TestReadTreeOfAMergedDebian(t *testing.T) {
	root := t.TempDir()
	for _, path := range []string{"usr/bin/program", "usr/share/doc/program/README", "usr/lib/systemd/system/program.service", "usr/lib/libx.so.1"} {
		file := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files, err := readTree(root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		got = append(got, strings.TrimSpace(f.Path+" "+f.Link))
	}
	if want := []string{"usr/bin/program", "usr/lib/libx.so.1", "bin usr/bin", "lib usr/lib"}; !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
}
