package layout

import (
	"slices"
	"strings"
)

// Names below the data directory.
const (
	lock           = "lock"
	kubeconfig     = "kubeconfig"
	resetPlan      = "reset.json"
	datastore      = "datastore"
	state          = "datastore/state.db"
	stateLog       = "datastore/state.wal."
	snapshots      = "datastore/snapshots"
	server         = "server"
	tls            = "server/tls"
	encryption     = "server/encryption.yaml"
	policies       = "server/policies"
	manifests      = "server/manifests"
	audit          = "audit"
	volumePlugins  = "volumeplugins"
	agent          = "agent"
	nodeName       = "agent/node-name"
	credentials    = "agent/credentials"
	resolvConf     = "agent/resolv.conf"
	containerdRoot = "agent/containerd"
	cniConfig      = "agent/cni/net.d"
	staticPods     = "agent/manifests"
	footprint      = "agent/footprint.json"
	imageLedger    = "agent/images.json"
	payload        = "payload"
	images         = "images"
	volumes        = "volumes"
)

// Names in the data directory and in the datastore's directory that exist only after a restore of a
// snapshot.
const (
	// Stage is the directory of the files that a restore will put in place.
	Stage = "restore.new"
	// ReplacedPrefix begins the names of the directories of the files that a restore replaced. The
	// time of the restore follows.
	ReplacedPrefix = "replaced-"
)

// Names below the run directory.
const (
	sockets          = "sockets"
	statusSocket     = "sockets/mote.sock"
	datastoreSocket  = "sockets/datastore.sock"
	containerdSocket = "sockets/containerd.sock"
	imagesSocket     = "sockets/images.sock"
	shimSockets      = "sockets/s"
	logs             = "log"
	containerdState  = "containerd"
	runc             = "runc"
	cni              = "cni"
	dns              = "dns"
)

// Entry describes a path below the data directory or the run directory.
type Entry struct {
	// Path is relative to that directory. A path that ends with "/" is a directory.
	Path string
	// Setting is the setting that chooses another path for it, or "".
	Setting string
	// Mode is its permissions in octal, or "" where they depend on the file or on the umask.
	Mode string
	// What describes its purpose, in Markdown.
	What string
}

// DataEntries lists the paths of mote in the data directory.
func DataEntries() []Entry {
	return []Entry{
		{Path: lock, Mode: "0600", What: "locked (`F_OFD_SETLK`) by the running mote; contains its process ID"},
		{Path: kubeconfig, Mode: "0600", What: "admin kubeconfig"},
		{Path: resetPlan, Mode: "0600", What: "the plan of a reset, only while the reset is not finished"},
		{Path: state, Mode: "0600", What: "bbolt file of the datastore"},
		{Path: stateLog + "0", Mode: "0600", What: "log of the writes that the bbolt file does not contain yet; `state.wal.1` is the other half"},
		{Path: snapshots + "/", Setting: "snapshot-dir", Mode: "0600", What: "snapshots, one file each: datastore/README.md, \"Snapshots\""},
		{Path: tls + "/", Mode: "keys 0600", What: "certificate authorities, certificates, service-account keys"},
		{Path: manifests + "/", Setting: "manifests-dir", What: "manifests that mote keeps applied to the cluster: addons/manifests/README.md"},
		{Path: "server/*.kubeconfig", Mode: "0600", What: "kubeconfigs of the control plane's components"},
		{Path: encryption, Mode: "0600", What: "configuration and key of the encryption at rest"},
		{Path: policies + "/", Mode: "0600", What: "policy files that kube-apiserver reads"},
		{Path: audit + "/", Mode: "0700", What: "audit log, when it is on: docs/explanation/security.md"},
		{Path: volumePlugins + "/", Mode: "0755", What: "FlexVolume drivers of the controller manager"},
		{Path: nodeName, Mode: "0600", What: "name of the node that the data directory belongs to"},
		{Path: credentials + "/", Mode: "keys 0600", What: "certificates, keys and kubeconfigs of the node: docs/architecture.md, \"The seam\""},
		{Path: resolvConf, What: "resolver configuration that the kubelet gives to pods"},
		{Path: containerdRoot + "/", What: "containerd's root: images, containers and their file systems"},
		{Path: cniConfig + "/", What: "configuration of the pod network"},
		{Path: staticPods + "/", What: "the kubelet's static pods"},
		{Path: footprint, Mode: "0600", What: "what the node has made on the machine, for a reset"},
		{Path: imageLedger, Mode: "0600", What: "which image came from which archive"},
		{Path: payload + "/", Mode: "0755", What: "unpacked runc, shim, CNI plugins, init and pause, in a directory named after their SHA-256"},
		{Path: images + "/", Setting: "image-dir", What: "image archives, imported and pinned at the start"},
		{Path: volumes + "/", Mode: "0711", What: "volumes of storage class `local`, reached through the link in the run directory"},
		{Path: Stage + "/", Mode: "0700", What: "what a restore is going to put in place; also in `datastore/`"},
		{Path: ReplacedPrefix + "*/", Mode: "0700", What: "what a restore replaced, with the old keys; remove it when it is not needed any more; also in `datastore/`"},
	}
}

// RunEntries lists the paths of mote in the run directory.
func RunEntries() []Entry {
	return []Entry{
		{Path: sockets + "/", Mode: "0700", What: "the sockets"},
		{Path: statusSocket, What: "status and profiles, over HTTP"},
		{Path: datastoreSocket, What: "etcd's API of the built-in datastore"},
		{Path: containerdSocket, What: "the CRI and containerd's own API"},
		{Path: imagesSocket, What: "the image half of the CRI, for the kubelet"},
		{Path: shimSockets + "/", What: "sockets of containerd's shims"},
		{Path: logs + "/", Mode: "0700", What: "`mote.log` and `mote.log.1`: the newest 1 to 2 MiB of the log, for `mote logs`; some 24 KB after a start"},
		{Path: containerdState + "/", What: "containerd's state"},
		{Path: runc + "/", What: "runc's state"},
		{Path: cni + "/", What: "address leases of pods and results of the CNI plugins"},
		{Path: dns + "/", What: "the Corefile in force"},
		{Path: volumes, What: "link to the volumes of storage class `local`"},
	}
}

// OwnsData reports whether mote makes the entry name of the data directory.
func OwnsData(name string) bool {
	return strings.HasPrefix(name, ReplacedPrefix) || owns(DataEntries(), name)
}

// OwnsRun reports whether mote makes the entry name of the run directory.
func OwnsRun(name string) bool { return owns(RunEntries(), name) }

// owns reports whether name is the first element of a path in entries, or the temporary file of
// one: ".NAME.SUFFIX".
func owns(entries []Entry, name string) bool {
	return slices.ContainsFunc(entries, func(e Entry) bool {
		first, _, _ := strings.Cut(e.Path, "/")
		return name == first || strings.HasPrefix(name, "."+first+".")
	})
}
