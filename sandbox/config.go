package sandbox

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/internal/disk"
)

// These are the values of Config.Wait.
const (
	WaitAPI  = "api"  // the API answers
	WaitNode = "node" // the node is Ready
)

// defaultHostname is the name of the host in a sandbox, and so of the node. Without a prefix it is
// also the default name of the cluster.
const defaultHostname = "mote"

// Config describes the sandbox to start.
type Config struct {
	// Exe is the path of the mote file. Default: the running program.
	Exe string
	// Args are Exe's arguments inside the sandbox. Default: "server".
	Args []string
	// Name is the name by which other processes of the host find the sandbox. It is unique on the
	// host. Default: the sandbox's ID.
	Name string
	// Dir is the directory on the host that keeps the cluster's state for a later sandbox with the
	// same Dir. It is made if it is missing. If Dir is empty, the state is in memory and ends with
	// the sandbox.
	Dir string
	// Hostname is the host's name inside, and so the node's. Default: "mote". The state in a Dir
	// belongs to the node of this name.
	Hostname string
	// Images are archives to import at the start. Their content decides, not their names. With a
	// Dir they are copied into it.
	Images []string
	// Publish lists NodePorts to make reachable from the host.
	Publish []Publish
	// Wait is the state that Start waits for: WaitNode (default) or WaitAPI.
	Wait string
	// Log gets the server's output. If it is nil, only the last lines are kept, for the method Log
	// and for StartError.
	Log io.Writer
	// Report is called for each change in the progress of Start. It may be nil.
	Report func(Step)
}

// Publish forwards connections to a TCP address of the host to a NodePort of the cluster.
type Publish struct {
	Host     netip.AddrPort
	NodePort uint16
}

// ParsePublish parses [ADDRESS:]PORT:NODEPORT. The default address is 127.0.0.1, so that a cluster
// for this machine is not offered to the network.
func ParsePublish(text string) (Publish, error) {
	bad := fmt.Errorf("%q is not [ADDRESS:]PORT:NODEPORT, such as 8080:30080 or 0.0.0.0:8080:30080", text)
	cut := strings.LastIndexByte(text, ':')
	if cut < 0 {
		return Publish{}, bad
	}
	host, node := text[:cut], text[cut+1:]
	if !strings.Contains(host, ":") {
		host = "127.0.0.1:" + host
	}
	addr, err := netip.ParseAddrPort(host)
	if err != nil {
		return Publish{}, bad
	}
	port, err := strconv.ParseUint(node, 10, 16)
	if err != nil || port == 0 {
		return Publish{}, bad
	}
	return Publish{Host: addr, NodePort: uint16(port)}, nil
}

// Validate returns an error if c cannot work. It starts nothing.
func (c Config) Validate() error {
	_, err := c.complete()
	return err
}

// complete returns c with defaults and absolute paths.
func (c Config) complete() (Config, error) {
	if os.Geteuid() != 0 {
		return c, errors.New("cannot make namespaces: not root; run it with sudo")
	}
	if c.Exe == "" {
		exe, err := os.Executable()
		if err != nil {
			return c, fmt.Errorf("find the running program: %w", err)
		}
		c.Exe = exe
	}
	if len(c.Args) == 0 {
		c.Args = []string{"server"}
	}
	if c.Hostname == "" {
		c.Hostname = defaultHostname
	}
	if c.Name != "" {
		if err := CheckName(c.Name); err != nil {
			return c, err
		}
		if other, err := Find(c.Name); err == nil {
			return c, fmt.Errorf("a sandbox called %s runs already (mote run, process %d); choose another name, or end that one", c.Name, other.PID)
		}
	}
	switch c.Wait {
	case "":
		c.Wait = WaitNode
	case WaitAPI, WaitNode:
	default:
		return c, fmt.Errorf("cannot wait for %q; use %s or %s", c.Wait, WaitAPI, WaitNode)
	}
	if c.Report == nil {
		c.Report = func(Step) {}
	}
	if err := c.completeImages(); err != nil {
		return c, err
	}
	return c, c.completeDir()
}

func (c *Config) completeImages() error {
	images := make([]string, len(c.Images))
	for i, path := range c.Images {
		abs, err := filepath.Abs(path)
		if err != nil {
			return fmt.Errorf("image archive %s: %w", path, err)
		}
		f, err := os.Open(abs)
		if err != nil {
			return fmt.Errorf("image archive: %w", err)
		}
		info, err := f.Stat()
		f.Close()
		if err != nil {
			return fmt.Errorf("image archive: %w", err)
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("image archive %s: not a file", path)
		}
		images[i] = abs
	}
	c.Images = images
	return nil
}

func (c *Config) completeDir() error {
	if c.Dir == "" {
		return nil
	}
	abs, err := filepath.Abs(c.Dir)
	if err != nil {
		return fmt.Errorf("directory %s: %w", c.Dir, err)
	}
	on, err := disk.Of(abs) // the directory may not exist yet
	if err != nil {
		return fmt.Errorf("cannot keep the cluster's state: %w", err)
	}
	if on.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return fmt.Errorf("cannot keep the cluster's state in %s: it is on an overlay file system, which cannot hold containers' files; name a directory on a disk", abs)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return fmt.Errorf("cannot keep the cluster's state: %w", err)
	}
	c.Dir = abs
	return nil
}

// lockDir takes the lock that keeps a second sandbox out of c.Dir. It locks the directory itself,
// so it needs no lock file. The lock is held until the last duplicate of the open directory is
// closed.
func (c *Config) lockDir() (*os.File, error) {
	if c.Dir == "" {
		return nil, nil
	}
	f, err := os.Open(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("cannot keep the cluster's state: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("cannot use %s: another sandbox runs on it; stop that one or name another directory", c.Dir)
		}
		return nil, fmt.Errorf("lock %s: %w", c.Dir, err)
	}
	return f, nil
}

// listen opens the host's side of every published port.
func listen(publish []Publish) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, p := range publish {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(p.Host))
		if err != nil {
			closeAll(listeners)
			if errors.Is(err, unix.EADDRINUSE) {
				return nil, fmt.Errorf("cannot publish NodePort %d on %s: the port is in use; choose another", p.NodePort, p.Host)
			}
			return nil, fmt.Errorf("cannot publish NodePort %d on %s: %w", p.NodePort, p.Host, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}
