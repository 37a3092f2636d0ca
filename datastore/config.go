package datastore

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"
)

// Config describes where the datastore keeps its data and how it serves it.
type Config struct {
	// Endpoint selects the storage engine: "bolt" (or empty), the default; "sqlite" or
	// "sqlite:///FILE"; "postgres://USER:PASSWORD@HOST:5432/DATABASE";
	// "mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE"; "nats://USER:PASSWORD@HOST:4222"; or the URL
	// of an etcd, "https://HOST:2379", several joined by commas. It may hold a password, so no
	// error and no log contains it.
	Endpoint string
	// CAFile verifies the server of Endpoint. CertFile and KeyFile are mote's client certificate
	// and key for that server. All are PEM and may be empty.
	CAFile, CertFile, KeyFile string
	// Path is the bbolt file. The file and its directory (0700) are created if missing. SQLite's
	// file is in the same directory, unless Endpoint names another.
	Path string
	// Socket is the unix socket that serves etcd v3, with mode 0600. Its directory is created with
	// mode 0700 if missing.
	Socket string
	// Listen is an additional TCP endpoint for remote clients. The default is none.
	Listen Listen
	// Restore returns the store file and the name of the newest valid snapshot. A start calls it
	// when it finds damage that it cannot repair without a snapshot. Nil means that there is no
	// snapshot.
	Restore func() (file io.ReadCloser, name string, err error)
	// ProgressInterval is the time between two messages with the current revision to a watch, while
	// nothing happens in its range. 0 means a minute. A shorter interval wakes the apiserver for
	// nothing.
	ProgressInterval time.Duration
	// Volatile lists prefixes of keys that are kept in memory and written only at checkpoints and
	// at a clean stop. After a crash these keys have the values of the last checkpoint. Nil means
	// DefaultVolatile, which an idle cluster needs to cause no disk writes; an empty slice means
	// none.
	Volatile []string
	// QuotaBytes limits the size of the store; 0 means 8 GiB. Above it, writes are refused as etcd
	// refuses them, until compaction has made room. A limit that is too small stops the cluster
	// from changing; a limit above the free space of the disk lets the disk run full.
	QuotaBytes int64
	// Above is a revision. An empty store begins above it, with its history compacted. Set it for
	// the target of a migration, which may be served before it is complete. etcd and NATS do not
	// support it. 0 means no minimum.
	Above int64
}

// defaultProgressInterval must be well below the apiserver's five minutes between compactions, or
// idle watches could not be resumed. Each progress message wakes the apiserver once for each
// resource.
const defaultProgressInterval = time.Minute

// DefaultVolatile returns the keys whose values are heartbeats. Their owners write them again
// within seconds: the leases of nodes, of apiservers and of their addresses, and the apiserver's
// record of its last compaction.
func DefaultVolatile() []string {
	return []string{
		"/registry/leases/kube-node-lease/",
		"/registry/leases/kube-system/apiserver-",
		"/registry/masterleases/",
		"/registry/peerserverleases/",
		"compact_rev_key",
	}
}

// VolatileEvents returns the keys of events. Use it to lose the events of the last minutes in a
// crash rather than write them.
func VolatileEvents() []string { return []string{"/registry/events/"} }

// maxSocketPath is the longest path in bytes that the kernel accepts in a socket address.
const maxSocketPath = 107

// Validate returns an error that describes what is wrong with the configuration.
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
