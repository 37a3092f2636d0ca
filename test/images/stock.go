package images

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// BusyboxPath is the path of the program in Debian's busybox-static.
const BusyboxPath = "/bin/busybox"

// Names of the images that the tests use. The tag is not "latest", so that the kubelet never tries
// to pull them.
const (
	BusyboxName = "localhost/test/busybox:1"
	WebName     = "localhost/test/web:1"
	CSIName     = "localhost/test/csi:1"
	ProxiedName = "localhost/test/proxied:1"
	PeerName    = "localhost/test/peer:1"

	KuardName     = "localhost/test/kuard:1"
	GuestbookName = "localhost/test/guestbook:1"
	RegistryName  = "localhost/test/registry:1"
	ExtensionName = "localhost/test/extension:1"
	ToolsName     = "localhost/test/tools:1"
	RedisName     = "localhost/test/redis:1"
	ClientName    = "localhost/test/client:1"
	PythonName    = "localhost/test/python:1"

	PrometheusName = "localhost/test/prometheus:1"
	InfluxDBName   = "localhost/test/influxdb:1"
	RsyslogName    = "localhost/test/rsyslog:1"
)

// Busybox returns an image of Debian's static busybox with a link for each of its tools.
func Busybox() (Image, error) {
	program, err := os.ReadFile(BusyboxPath)
	if err != nil {
		return Image{}, fmt.Errorf("%w; install Debian's busybox-static", err)
	}
	links, err := applets(BusyboxPath)
	if err != nil {
		return Image{}, err
	}
	im := Image{Name: BusyboxName, Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}}
	im.Files = append(im.Files,
		File{Path: "bin/busybox", Mode: 0o755, Data: program},
		File{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/:/bin/sh\n")},
		File{Path: "tmp/.keep", Mode: 0o644},
	)
	im.Files = append(im.Files, links...)
	return im, nil
}

// applets returns a link for each tool of a busybox.
func applets(program string) ([]File, error) {
	list, err := exec.Command(program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the tools of %s: %w", program, err)
	}
	var links []File
	for _, name := range strings.Fields(string(list)) {
		if name != "busybox" {
			links = append(links, File{Path: "bin/" + name, Link: "busybox"})
		}
	}
	return links, nil
}

// Program returns an image that contains nothing except a Go program of this repository. The
// program is built statically from the package directory pkg, relative to the repository's root,
// e.g. ./test/images/web.
func Program(name, root, pkg string) (Image, error) {
	dir, err := os.MkdirTemp("", "mote-test-image-")
	if err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "program")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", out, pkg)
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	build.Stderr = &stderr
	if err := build.Run(); err != nil {
		return Image{}, fmt.Errorf("build %s: %w: %s", pkg, err, stderr.String())
	}
	program, err := os.ReadFile(out)
	if err != nil {
		return Image{}, err
	}
	return Image{
		Name:  name,
		Cmd:   []string{"/program"},
		Files: []File{{Path: "program", Mode: 0o755, Data: program}},
	}, nil
}

// WithShell adds busybox's tools to the image of a program.
func WithShell(im Image) (Image, error) {
	box, err := Busybox()
	im.Files = append(im.Files, box.Files...)
	im.Env = append(im.Env, box.Env...)
	return im, err
}

// Registry returns an image of a registry that serves one image to clients with the user and the
// password of its environment.
func Registry(root string, served Image) (Image, error) {
	im, err := Program(RegistryName, root, "./test/images/registry")
	if err != nil {
		return Image{}, err
	}
	var archive bytes.Buffer
	if err := served.WriteOCI(&archive); err != nil {
		return Image{}, fmt.Errorf("write image %s for the registry: %w", served.Name, err)
	}
	im.Files = append(im.Files, File{Path: "image.tar", Mode: 0o644, Data: archive.Bytes()})
	return im, nil
}
