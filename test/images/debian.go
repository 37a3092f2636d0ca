package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// CacheVariable names the environment variable with the directory for Debian's packages.
const CacheVariable = "MOTE_TEST_CACHE"

// cacheDir returns the directory of the packages: MOTE_TEST_CACHE, or mote-test in the user's
// cache.
func cacheDir() (string, error) {
	if dir := os.Getenv(CacheVariable); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache for Debian's packages: %w; set %s", err, CacheVariable)
	}
	return filepath.Join(dir, "mote-test"), nil
}

// Debian returns an image with the programs of Debian packages and the libraries that they need,
// unpacked without being installed. Packages that the cache lacks are fetched from the mirrors that
// the machine's apt knows.
func Debian(name string, packages ...string) (Image, error) {
	dir, err := cacheDir()
	if err != nil {
		return Image{}, err
	}
	root := filepath.Join(dir, "packages", strings.Join(packages, "+"))
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		if err := unpackPackages(root, packages); err != nil {
			return Image{}, err
		}
	}
	files, err := readTree(root)
	if err != nil {
		return Image{}, fmt.Errorf("read the files of %v: %w", packages, err)
	}
	files = append(files,
		File{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/:/bin/sh\n")},
		File{Path: "tmp/.keep", Mode: 0o644},
	)
	return Image{Name: name, Files: files, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}}, nil
}

// unpackPackages fetches packages and their libraries and unpacks them to root. It works in a
// directory beside root, so that a root that exists is complete.
func unpackPackages(root string, packages []string) error {
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(root), "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	all, err := withLibraries(packages)
	if err != nil {
		return err
	}
	fetch := exec.Command("apt-get", append([]string{"download", "-qq", "-o", "APT::Sandbox::User=root"}, all...)...)
	fetch.Dir = work
	if out, err := fetch.CombinedOutput(); err != nil {
		return fmt.Errorf("fetch Debian's packages %v: %w: %s; is the network there, and apt-get update run?", all, err, out)
	}
	archives, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return err
	}
	for _, archive := range archives {
		if out, err := exec.Command("dpkg-deb", "-x", archive, filepath.Join(work, "root")).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", archive, err, out)
		}
	}
	return os.Rename(filepath.Join(work, "root"), root)
}

// withLibraries adds the libraries that packages depend on, Python's too, and the libraries of
// these. It leaves out other dependencies (scripts that create users or start services), which only
// an installation needs.
func withLibraries(packages []string) ([]string, error) {
	all := slices.Clone(packages)
	for next := packages; len(next) > 0; {
		out, err := exec.Command("apt-cache", append([]string{"depends", "--important"}, next...)...).Output()
		if err != nil {
			return nil, fmt.Errorf("ask for the dependencies of Debian's packages %v: %w", next, err)
		}
		next = nil
		for line := range strings.Lines(string(out)) {
			library, ok := strings.CutPrefix(strings.TrimPrefix(strings.TrimSpace(line), "Pre"), "Depends: ")
			if ok && isLibrary(library) && !slices.Contains(all, library) {
				all, next = append(all, library), append(next, library)
			}
		}
	}
	return all, nil
}

func isLibrary(name string) bool {
	return strings.HasPrefix(name, "lib") || strings.HasPrefix(name, "python3") || name == "zlib1g"
}

// readTree reads the files that a program needs to run: no documentation, services or locales.
func readTree(root string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains([]string{"usr/share", "usr/lib/systemd", "lib/systemd", "etc", "var"}, rel) || d.Name() == "gconv" {
				return filepath.SkipDir
			}
			return nil
		}
		file, err := readFile(path, rel, d)
		files = append(files, file)
		return err
	})
	// In Debian /bin, /lib and similar directories are links below /usr; a package alone does not
	// have the links.
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		_, top := os.Stat(filepath.Join(root, dir))
		if _, err := os.Stat(filepath.Join(root, "usr", dir)); err == nil && top != nil {
			files = append(files, File{Path: dir, Link: "usr/" + dir})
		}
	}
	return files, err
}

func readFile(path, rel string, d fs.DirEntry) (File, error) {
	if d.Type()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(path)
		return File{Path: rel, Link: target}, err
	}
	info, err := d.Info()
	if err != nil {
		return File{}, err
	}
	data, err := os.ReadFile(path)
	return File{Path: rel, Mode: int64(info.Mode().Perm()), Data: data}, err
}

// Tools returns an image of Debian's ordinary busybox: unlike the static one it can resolve names.
func Tools() (Image, error) {
	im, err := Debian(ToolsName, "busybox")
	if err != nil {
		return Image{}, err
	}
	dir, err := cacheDir()
	if err != nil {
		return Image{}, err
	}
	links, err := applets(filepath.Join(dir, "packages", "busybox", "bin", "busybox"))
	if err != nil {
		return Image{}, err
	}
	im.Files = append(im.Files, links...)
	im.Cmd = []string{"/bin/sh"}
	return im, nil
}

// Redis returns an image of Debian's redis-server with its tools.
func Redis() (Image, error) {
	im, err := Debian(RedisName, "redis-server", "redis-tools")
	im.Cmd = []string{"redis-server", "--protected-mode", "no", "--dir", "/tmp"}
	return im, err
}

// Python returns an image of Debian's Python with the client of Kubernetes.
func Python() (Image, error) {
	im, err := Debian(PythonName, "python3", "python3-minimal", "python3-kubernetes")
	im.Cmd = []string{"python3"}
	return im, err
}

// Prometheus returns an image of Debian's Prometheus, with its pages.
func Prometheus() (Image, error) { return Debian(PrometheusName, "prometheus") }

// InfluxDB returns an image of Debian's InfluxDB, a store of series and lines with an HTTP API.
func InfluxDB() (Image, error) { return Debian(InfluxDBName, "influxdb") }

// Rsyslog returns an image of Debian's rsyslog, which reads log files and forwards them.
func Rsyslog() (Image, error) { return Debian(RsyslogName, "rsyslog") }
