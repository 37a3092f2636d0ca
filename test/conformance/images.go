package conformance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mote-k8s/mote/test/images"
)

// Mirrored is the registry in the image names of the specs. containerd is configured with a mirror
// of it.
const Mirrored = "registry.k8s.io"

// standIn is an image that the specs name.
type standIn struct {
	repository string // without the registry's host and the tag
	from       string // its contents, for the page
	make       func(s *sources) (images.Image, error)
}

// standIns returns the images that conformance specs name. The registry serves no others.
func standIns() []standIn {
	return []standIn{
		{
			"e2e-test-images/agnhost",
			"upstream's program over Debian's tools instead of Alpine's; both tags are the same program",
			func(s *sources) (images.Image, error) { return s.agnhost, nil },
		},
		{
			"e2e-test-images/busybox", "Debian's busybox, an older version, with bash as the first shell in PATH; all tags are the same program",
			func(s *sources) (images.Image, error) { return s.busybox, nil },
		},
		{
			"e2e-test-images/glibc-dns-testing", "Debian's dig and getent, as upstream's, of an older release",
			func(s *sources) (images.Image, error) { return s.tools, nil },
		},
		{
			"e2e-test-images/kitten", "the stand-in for agnhost with upstream's files",
			func(s *sources) (images.Image, error) { return s.withPicture("kitten") },
		},
		{
			"e2e-test-images/nautilus", "the stand-in for agnhost with upstream's files",
			func(s *sources) (images.Image, error) { return s.withPicture("nautilus") },
		},
		{"e2e-test-images/nginx", "Debian's nginx; both tags are the same program", (*sources).nginx},
		{"e2e-test-images/nonewprivs", "upstream's program over the stand-in for busybox", (*sources).nonewprivs},
		{
			"e2e-test-images/nonroot", "the stand-in for busybox as user 1234",
			func(s *sources) (images.Image, error) {
				return images.Image{Base: &s.busybox, Cmd: s.busybox.Cmd, Env: s.busybox.Env, User: "1234"}, nil
			},
		},
		{
			"e2e-test-images/sample-apiserver", "upstream's program, of the module's version",
			func(s *sources) (images.Image, error) { return s.program("sample-apiserver", "sample-apiserver") },
		},
		{
			"etcd", "upstream's program, of the version that the datastore is compared with",
			func(s *sources) (images.Image, error) { return s.program("etcd", "usr/local/bin/etcd") },
		},
		{
			"pause", "upstream's source, statically linked",
			func(s *sources) (images.Image, error) { return s.program("pause", "pause") },
		},
	}
}

// StandIns returns, by repository, the contents of each image that the specs name.
func StandIns() map[string]string {
	from := map[string]string{}
	for _, kind := range standIns() {
		from[kind.repository] = kind.from
	}
	return from
}

// MakeImages makes those of the named images that have a stand-in, from the programs in a directory
// and Debian packages.
func MakeImages(programs string, names []string) ([]images.Image, error) {
	s, err := newSources(programs)
	if err != nil {
		return nil, err
	}
	var made []images.Image
	for _, kind := range standIns() {
		im, err := kind.make(s)
		if err != nil {
			return nil, fmt.Errorf("make image %s: %w", kind.repository, err)
		}
		before := len(made)
		for _, name := range names {
			if strings.HasPrefix(name, Mirrored+"/"+kind.repository+":") {
				im.Name = name
				made = append(made, im)
			}
		}
		if len(made) == before {
			return nil, fmt.Errorf("upstream's specs no longer name image %s; remove it from standIns", kind.repository)
		}
	}
	return made, nil
}

// sources are the ingredients of the stand-ins.
type sources struct {
	programs   string // the directory with the programs that scripts/conformance builds
	kubernetes string // the directory of the module k8s.io/kubernetes
	// The base images of others.
	busybox, tools, agnhost images.Image
}

func newSources(programs string) (*sources, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		return nil, fmt.Errorf("find the module k8s.io/kubernetes: %w", err)
	}
	s := &sources{programs: programs, kubernetes: strings.TrimSpace(string(dir))}
	if s.busybox, err = makeBusybox(); err != nil {
		return nil, err
	}
	if s.tools, err = s.makeTools(); err != nil {
		return nil, err
	}
	s.agnhost, err = s.makeAgnhost()
	return s, err
}

// makeBusybox makes an image of Debian's busybox, with bash as the first sh in PATH. The shell of
// Debian's busybox leaves out environment variables that cannot be shell variables, such as data-1,
// which specs print by "sh -c env"; upstream's shell passes them on, and so does bash. Another spec
// runs /bin/sh and compares an error message of busybox.
func makeBusybox() (images.Image, error) {
	box, err := images.Tools()
	if err != nil {
		return images.Image{}, err
	}
	im, err := images.Debian("", "bash")
	im.Base, im.Cmd = &box, box.Cmd
	im.Files = append(im.Files, images.File{Path: "usr/sbin/sh", Link: "/bin/bash"})
	return im, err
}

// makeTools makes an image of busybox and of those Debian programs that specs run in agnhost or in
// glibc-dns-testing. These replace busybox's smaller versions.
func (s *sources) makeTools() (images.Image, error) {
	im, err := images.Debian("", "bind9-dnsutils", "bind9-libs", "curl", "iproute2", "libc-bin", "netcat-openbsd")
	im.Base, im.Cmd = &s.busybox, s.busybox.Cmd
	im.Files = append(im.Files,
		images.File{Path: "bin/nc", Link: "nc.openbsd"},
		images.File{Path: "etc/nsswitch.conf", Mode: 0o644, Data: []byte("hosts: files dns\n")})
	return im, err
}

// makeAgnhost follows test/images/agnhost/Dockerfile of the module.
func (s *sources) makeAgnhost() (images.Image, error) {
	im := images.Image{
		Base: &s.tools, Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: s.tools.Env,
		Files: []images.File{
			{Path: "agnhost-2", Link: "agnhost"},
			{Path: "uploads/.keep", Mode: 0o644},
			{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\n" +
				"user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n")},
			{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:root\nuser-defined-in-image:x:1000:\n" +
				"group-defined-in-image:x:50000:user-defined-in-image\n")},
			// The spec of image volumes looks for this name.
			{Path: "etc/os-release", Mode: 0o644, Data: []byte("NAME=\"Debian, in the place of Alpine Linux\"\n")},
		},
	}
	err := s.add(&im, 0o755, "agnhost", filepath.Join(s.programs, "agnhost"))
	for _, name := range []string{"localhost.crt", "localhost.key"} {
		if err == nil {
			err = s.add(&im, 0o644, name, filepath.Join(s.kubernetes, "test/images/agnhost/porter", name))
		}
	}
	return im, err
}

func (s *sources) withPicture(name string) (images.Image, error) {
	im := images.Image{Base: &s.agnhost, Entrypoint: s.agnhost.Entrypoint, Cmd: []string{"test-webserver"}, Env: s.agnhost.Env}
	for _, file := range []string{name + ".jpg", "data.json"} {
		if err := s.add(&im, 0o644, file, filepath.Join(s.kubernetes, "test/images", name, "html", file)); err != nil {
			return im, err
		}
	}
	return im, nil
}

func (s *sources) nginx() (images.Image, error) {
	im, err := images.Debian("", "nginx")
	im.Base, im.Cmd = &s.busybox, []string{"nginx", "-g", "daemon off;"}
	im.Files = append(im.Files,
		images.File{Path: "etc/nginx/nginx.conf", Mode: 0o644, Data: []byte(nginxConfig)},
		images.File{Path: "usr/share/nginx/html/index.html", Mode: 0o644, Data: []byte("Welcome to nginx!\n")},
		images.File{Path: "var/log/nginx/.keep", Mode: 0o644},
		images.File{Path: "var/lib/nginx/.keep", Mode: 0o644})
	return im, err
}

const nginxConfig = `user root;
pid /tmp/nginx.pid;
error_log stderr;
events {}
http {
	access_log /dev/stdout;
	server {
		listen 80;
		root /usr/share/nginx/html;
	}
}
`

// nonewprivs makes an image of a program that runs as root by its set-user-ID bit.
func (s *sources) nonewprivs() (images.Image, error) {
	im := images.Image{Base: &s.busybox, Cmd: []string{"nnp"}, Env: []string{"PATH=/usr/local/bin:/bin"}}
	const setuid = 0o4755
	return im, s.add(&im, setuid, "usr/local/bin/nnp", filepath.Join(s.programs, "nonewprivs"))
}

// program makes an image of one program and nothing else.
func (s *sources) program(name, path string) (images.Image, error) {
	im := images.Image{Entrypoint: []string{"/" + path}}
	return im, s.add(&im, 0o755, path, filepath.Join(s.programs, name))
}

func (s *sources) add(im *images.Image, mode int64, path, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	im.Files = append(slices.Clip(im.Files), images.File{Path: path, Mode: mode, Data: data})
	return nil
}
