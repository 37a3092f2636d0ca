package datastore

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"
)

// Config says where the datastore lives.
type Config struct {
	// Endpoint says what keeps the data: "bolt" (or nothing), the default; "sqlite" or "sqlite:///FILE";
	// "postgres://USER:PASSWORD@HOST:5432/DATABASE"; "mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE";
	// "nats://USER:PASSWORD@HOST:4222"; or an etcd's "https://HOST:2379", several joined by commas. It may hold a
	// password: it is in no error and in no log.
	Endpoint string
	// CAFile verifies the server of Endpoint; CertFile and KeyFile are ours before it. PEM; all may be empty.
	CAFile, CertFile, KeyFile string
	// Path is the bbolt file. It and its folder (0700) are made when missing. SQLite's file is beside it, unless
	// Endpoint names another.
	Path string
	// Socket is the unix socket that etcd v3 is served on, with mode 0600. Its folder is made with
	// mode 0700 when missing.
	Socket string
	// Listen is a further endpoint for clients elsewhere. The default is none.
	Listen Listen
	// Restore returns the store's file of the newest good snapshot and the snapshot's name, for a start that finds damage which cannot be
	// repaired without. nil is none.
	Restore func() (file io.ReadCloser, name string, err error)
	// ProgressInterval is how often watches are told the current revision when nothing happens in their
	// range; 0 is once a minute. More often wakes the apiserver for nothing.
	ProgressInterval time.Duration
	// Volatile are the beginnings of keys that are kept in memory and written at checkpoints and at a clean
	// stop only: after a crash they are what they were then. nil is DefaultVolatile, which an idle cluster
	// needs to leave the disk alone; empty is none.
	Volatile []string
	// QuotaBytes is how much the store may hold; 0 is 8 GiB. Over it, writes are refused as etcd refuses them, until compaction has made
	// room. Too little stops the cluster from changing; more than the disk has lets it run full.
	QuotaBytes int64
	// Above is a revision above which a store that is empty begins, with its history compacted: for a copy of another
	// store, which may be served before it is whole. etcd and NATS cannot be told. 0 is no wish.
	Above int64
}

// defaultProgressInterval must be well below the apiserver's five minutes between compactions, or idle watches
// could not be resumed; each time wakes the apiserver once for each resource.
const defaultProgressInterval = time.Minute

// DefaultVolatile are keys whose values are signs of life, which their owners write again within seconds: leases of
// nodes, of apiservers and of their addresses, and the apiserver's note of what it compacted.
func DefaultVolatile() []string {
	return []string{
		"/registry/leases/kube-node-lease/",
		"/registry/leases/kube-system/apiserver-",
		"/registry/masterleases/",
		"/registry/peerserverleases/",
		"compact_rev_key",
	}
}

// VolatileEvents are the keys of events, for who would rather lose those of the last minutes in a crash than write them.
func VolatileEvents() []string { return []string{"/registry/events/"} }

// maxSocketPath is what the kernel has room for in a socket address, in bytes.
const maxSocketPath = 107

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case c.Path == "" || c.Socket == "":
		return errors.New("datastore: path and socket must be set")
	case !filepath.IsAbs(c.Path) || !filepath.IsAbs(c.Socket):
		return fmt.Errorf("datastore: path %q and socket %q must be absolute", c.Path, c.Socket)
	case c.QuotaBytes < 0:
		return fmt.Errorf("datastore: quota of %d bytes must not be negative", c.QuotaBytes)
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("datastore: certificate file and key file must be given together")
	case len(c.Socket) > maxSocketPath:
		return fmt.Errorf("datastore: socket path %s is longer than the %d bytes that the kernel allows; use a shorter run directory", c.Socket, maxSocketPath)
	}
	return c.Listen.validate()
}
