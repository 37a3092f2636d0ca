package machine

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mote-k8s/mote/internal/durable"
	"github.com/mote-k8s/mote/internal/pack"
)

// Paths of an installed mote. The unit files contain InstalledFile too.
const (
	serviceName = "mote"
	// InstalledFile is the path of an installed mote.
	InstalledFile = "/usr/local/bin/mote"
	kubectlLink   = "/usr/local/bin/kubectl"
	// installRecord lists the paths that install created, one on each line, for uninstall.
	installRecord = "/usr/local/lib/mote/installed"
)

//go:embed service/mote.service
var systemdUnit []byte

//go:embed service/mote.openrc
var openrcScript []byte

// initSystem is a service manager: the files that it needs and the commands that control it.
type initSystem struct {
	name string
	unit string // path of the unit file, and its content
	text []byte
	mode os.FileMode
	link string // link to the unit, which starts it at boot
	// signs are paths of which at least one exists where the service manager is installed; live
	// exists while it runs.
	signs  []string
	live   string
	first  []string // names that the first process has where the service manager runs
	reload []string // command that makes the service manager read its files again, if it needs one
	start  []string
}

func initSystems() []initSystem {
	return []initSystem{
		{
			name: "systemd", unit: "/etc/systemd/system/mote.service", text: systemdUnit, mode: 0o644,
			link:   "/etc/systemd/system/multi-user.target.wants/mote.service",
			signs:  []string{"/run/systemd/system", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"},
			live:   "/run/systemd/system",
			first:  []string{"systemd"},
			reload: []string{"systemctl", "daemon-reload"},
			start:  []string{"systemctl", "restart", serviceName},
		},
		{
			name: "openrc", unit: "/etc/init.d/mote", text: openrcScript, mode: 0o755,
			link:  "/etc/runlevels/default/mote",
			signs: []string{"/sbin/openrc-run", "/usr/sbin/openrc-run"},
			live:  "/run/openrc/softlevel",
			first: []string{"init", "openrc-init"},
			start: []string{"rc-service", serviceName, "restart"},
		},
	}
}

// Installer installs mote as a service of a machine, or removes it.
type Installer struct {
	// Root is the root directory of the machine: "/", or the mount point of another machine's file
	// system.
	Root string
	// Init selects the service manager: auto, systemd, openrc or none.
	Init string
	// NoStart leaves the start to the next boot of the machine.
	NoStart bool
	Env     Env
}

// Install copies the running program to the machine and registers it as a service that starts at
// boot. If Root is this machine, Install also starts the service.
func (i Installer) Install(ctx context.Context) error {
	service, err := i.choose(i.Init)
	if err != nil {
		return err
	}
	if err := i.install(service); err != nil {
		return err
	}
	if filepath.Clean(i.Root) != "/" || service == nil {
		fmt.Fprintln(i.Env.Stderr, "Next: run \"mote server\" there")
		return nil
	}
	return i.start(ctx, *service)
}

// choose returns the service manager named init. With none, mote is installed as a plain program.
func (i Installer) choose(init string) (*initSystem, error) {
	names := []string{"auto", "none"}
	for _, s := range initSystems() {
		names = append(names, s.name)
		here := slices.ContainsFunc(s.signs, func(sign string) bool { return exists(i.path(sign)) })
		if init == s.name || init == "auto" && here {
			return &s, nil
		}
	}
	if !slices.Contains(names, init) {
		return nil, fmt.Errorf("--init: %q is not one of %s", init, strings.Join(names, ", "))
	}
	return nil, nil
}

func (i Installer) install(service *initSystem) error {
	paths := []string{InstalledFile}
	type link struct{ path, target string }
	var links []link
	if service != nil {
		paths = append(paths, service.unit)
		links = append(links, link{service.link, service.unit})
	}
	if !i.foreignKubectl() {
		links = append(links, link{kubectlLink, InstalledFile})
	}
	for _, l := range links {
		paths = append(paths, l.path)
	}
	if err := i.record(paths); err != nil {
		return err
	}
	if err := i.Env.Steps.Do("Copy mote to "+i.path(InstalledFile), i.copySelf); err != nil {
		return err
	}
	if service != nil {
		err := i.Env.Steps.Do("Write "+i.path(service.unit), func() error { return i.write(service.unit, service.text, service.mode) })
		if err != nil {
			return err
		}
	}
	for _, l := range links {
		if err := i.Env.Steps.Do("Link "+i.path(l.path), func() error { return i.link(l.path, l.target) }); err != nil {
			return err
		}
	}
	return nil
}

// start starts the service through the service manager, if that runs on this machine.
func (i Installer) start(ctx context.Context, service initSystem) error {
	if !exists(service.live) {
		fmt.Fprintln(i.Env.Stderr, notStarted(service, firstProcess()))
		return nil
	}
	if service.reload != nil {
		if err := command(ctx, service.reload); err != nil {
			return err
		}
	}
	if i.NoStart {
		return nil
	}
	if err := i.Env.Steps.Do("Start mote", func() error { return command(ctx, service.start) }); err != nil {
		return err
	}
	fmt.Fprintln(i.Env.Stderr, "Next: mote kubectl get nodes")
	return nil
}

// notStarted explains why mote was not started when the service manager does not run, and names the
// next step.
func notStarted(service initSystem, first string) string {
	if slices.Contains(service.first, first) {
		return service.name + " does not run yet; mote starts at the next boot"
	}
	return fmt.Sprintf("%s is installed here but does not run: the first process (PID 1) is %s. Nothing starts mote at boot until %[1]s does; "+
		"otherwise let %s start \"mote server\", and take the unit away with \"mote uninstall\" and \"mote install --init=none\"", service.name, first, first)
}

// firstProcess returns the name of the first process, which starts all services.
func firstProcess() string {
	name, err := os.ReadFile("/proc/1/comm")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(name))
}

// foreignKubectl reports whether the machine has a kubectl other than mote's link.
func (i Installer) foreignKubectl() bool {
	if target, err := os.Readlink(i.path(kubectlLink)); err == nil && target == InstalledFile {
		return false
	}
	return slices.ContainsFunc([]string{kubectlLink, "/usr/bin/kubectl", "/bin/kubectl", "/snap/bin/kubectl"},
		func(path string) bool { return exists(i.path(path)) })
}

// record adds paths to the record before they are created, so that uninstall can undo an
// interrupted install.
func (i Installer) record(paths []string) error {
	known, err := i.recorded()
	if err != nil {
		return err
	}
	for _, p := range paths {
		if !slices.Contains(known, p) {
			known = append(known, p)
		}
	}
	return i.write(installRecord, []byte(strings.Join(known, "\n")+"\n"), 0o644)
}

func (i Installer) recorded() ([]string, error) {
	data, err := os.ReadFile(i.path(installRecord))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what install made: %w", err)
	}
	return strings.Fields(string(data)), nil
}

// copySelf copies the running program. A running mote keeps its old file until it restarts.
func (i Installer) copySelf() error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("read this program: %w", err)
	}
	if old, err := os.ReadFile(i.path(InstalledFile)); err == nil && bytes.Equal(old, self) {
		return nil
	}
	if err := i.write(InstalledFile, self, 0o755); err != nil {
		return err
	}
	if filepath.Clean(i.Root) != "/" {
		return nil
	}
	// The unpacked program in the cache of a packed file is not needed any more.
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own file: %w", err)
	}
	return pack.Remove(exe)
}

// write replaces a file, and makes its directory.
func (i Installer) write(path string, data []byte, mode os.FileMode) error {
	path = i.path(path)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = durable.WriteFile(path, data, mode)
	}
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	return nil
}

func (i Installer) link(path, target string) error {
	path = i.path(path)
	if old, err := os.Readlink(path); err == nil && old == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("install %s: %w", path, err)
	}
	if err := os.Symlink(target, path); err != nil {
		return fmt.Errorf("install %s: %w", path, err)
	}
	return nil
}

func (i Installer) path(p string) string { return filepath.Join(i.Root, p) }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// command runs a command of the service manager. The error of a failed command quotes its output.
func command(ctx context.Context, argv []string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// Uninstall removes the paths in the record, and then the record itself.
func (i Installer) Uninstall(ctx context.Context) error {
	paths, err := i.recorded()
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		fmt.Fprintf(i.Env.Stderr, "Nothing to remove: there is no %s\n", i.path(installRecord))
		return nil
	}
	slices.Reverse(paths)
	for _, p := range paths {
		if err := i.Env.Steps.Do("Remove "+i.path(p), func() error { return i.remove(p) }); err != nil {
			return err
		}
	}
	if err := i.remove(installRecord); err != nil {
		return err
	}
	// The directory belongs to mote alone, and is empty now.
	if err := os.Remove(filepath.Dir(i.path(installRecord))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("uninstall: %w", err)
	}
	for _, s := range initSystems() {
		if filepath.Clean(i.Root) == "/" && exists(s.live) && s.reload != nil {
			return command(ctx, s.reload)
		}
	}
	return nil
}

// remove removes path. It keeps a kubectl that has replaced mote's link.
func (i Installer) remove(path string) error {
	if path == kubectlLink {
		if target, err := os.Readlink(i.path(path)); err != nil || target != InstalledFile {
			return nil
		}
	}
	if err := os.Remove(i.path(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("uninstall: %w", err)
	}
	return nil
}
