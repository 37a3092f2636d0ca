// Package layout names the files and directories that mote keeps on a machine, each name once. The
// settings choose three base directories; every other path of mote comes from the methods of Data
// and Run.
//
// The tables of this package also contain the purpose and the mode of each path. The page
// docs/reference/files.md is generated from them, and "mote reset" removes the listed paths and
// nothing else.
package layout

import (
	"path/filepath"
	"strconv"
)

// Directories that are used unless the settings name others.
const (
	DefaultData    = "/var/lib/mote"
	DefaultRun     = "/run/mote"
	DefaultKubelet = "/var/lib/kubelet"
)

// Paths that no setting changes.
const (
	// Config is the configuration file. The files in the directory of the same name plus ".d" come
	// after it.
	Config = "/etc/mote/config.yaml"
	// Sandboxes has a directory for each running "mote run".
	Sandboxes = "/run/mote-sandbox"
)

// Data is the path of the data directory. It holds everything that must survive a reboot.
type Data string

func (d Data) below(path string) string { return filepath.Join(string(d), path) }

// Lock returns the path of the file that the running mote keeps locked. The file holds the process
// ID.
func (d Data) Lock() string { return d.below(lock) }

// AdminKubeconfig returns the path of the admin kubeconfig.
func (d Data) AdminKubeconfig() string { return d.below(kubeconfig) }

// ResetPlan returns the path of the plan of a reset that has begun.
func (d Data) ResetPlan() string { return d.below(resetPlan) }

// Datastore returns the directory of the built-in datastore.
func (d Data) Datastore() string { return d.below(datastore) }

// State returns the path of the bbolt file of the built-in datastore.
func (d Data) State() string { return d.below(state) }

// StateLog returns the path of one of the two halves, 0 and 1, of the log of the writes that the
// bbolt file does not contain yet.
func (d Data) StateLog(half int) string { return d.below(stateLog + strconv.Itoa(half)) }

// Snapshots returns the directory of the datastore's snapshots unless the settings name another.
func (d Data) Snapshots() string { return d.below(snapshots) }

// Server returns the directory of the control plane. A snapshot contains all of the directory.
func (d Data) Server() string { return d.below(server) }

// TLS returns the directory of the control plane's authorities, certificates and service-account
// keys.
func (d Data) TLS() string { return d.below(tls) }

// ServerKubeconfig returns the path of the kubeconfig of a component of the control plane.
func (d Data) ServerKubeconfig(component string) string {
	return d.below(filepath.Join(server, component+".kubeconfig"))
}

// EncryptionConfig returns the path of the configuration of the encryption at rest. The file
// contains the key.
func (d Data) EncryptionConfig() string { return d.below(encryption) }

// Policies returns the directory of the policy files that kube-apiserver reads.
func (d Data) Policies() string { return d.below(policies) }

// Manifests returns the directory of the manifests that mote applies unless the settings name
// another.
func (d Data) Manifests() string { return d.below(manifests) }

// AuditLog returns the path of the current file of the audit log. Older files are beside it.
func (d Data) AuditLog() string { return d.below(filepath.Join(audit, "audit.log")) }

// VolumePlugins returns the directory of the controller manager's FlexVolume drivers.
func (d Data) VolumePlugins() string { return d.below(volumePlugins) }

// Agent returns the directory of the node's own files.
func (d Data) Agent() string { return d.below(agent) }

// NodeName returns the path of the file with the name of the node that owns the data directory.
func (d Data) NodeName() string { return d.below(nodeName) }

// Credentials returns the directory of the node's certificates, keys and kubeconfigs.
func (d Data) Credentials() string { return d.below(credentials) }

// ResolvConf returns the path of the resolver configuration that the kubelet gives to pods.
func (d Data) ResolvConf() string { return d.below(resolvConf) }

// Containerd returns containerd's root directory.
func (d Data) Containerd() string { return d.below(containerdRoot) }

// CNIConfig returns the directory of the pod network's configuration.
func (d Data) CNIConfig() string { return d.below(cniConfig) }

// StaticPods returns the directory of the kubelet's static pods.
func (d Data) StaticPods() string { return d.below(staticPods) }

// Footprint returns the path of the file that records the changes of the node to the machine, for a
// reset.
func (d Data) Footprint() string { return d.below(footprint) }

// ImageLedger returns the path of the file that records which archive each image came from.
func (d Data) ImageLedger() string { return d.below(imageLedger) }

// Payload returns the directory of the unpacked programs that run beside each pod.
func (d Data) Payload() string { return d.below(payload) }

// Images returns the directory of the image archives to import unless the settings name another.
func (d Data) Images() string { return d.below(images) }

// Volumes returns the directory of the volumes of storage class "local".
func (d Data) Volumes() string { return d.below(volumes) }

// Run is the path of the run directory. A reboot may empty it.
type Run string

func (r Run) below(path string) string { return filepath.Join(string(r), path) }

// Sockets returns the directory of the sockets.
func (r Run) Sockets() string { return r.below(sockets) }

// StatusSocket returns the path of the socket on which a running mote serves its status and its
// profiles, over HTTP.
func (r Run) StatusSocket() string { return r.below(statusSocket) }

// DatastoreSocket returns the path of the socket on which the built-in datastore serves etcd's API.
func (r Run) DatastoreSocket() string { return r.below(datastoreSocket) }

// ContainerdSocket returns the path of the socket on which containerd serves the CRI and its own
// API.
func (r Run) ContainerdSocket() string { return r.below(containerdSocket) }

// ImagesSocket returns the path of the socket on which mote serves the image half of the CRI to the
// kubelet.
func (r Run) ImagesSocket() string { return r.below(imagesSocket) }

// ShimSockets returns the directory of the sockets of containerd's shims.
func (r Run) ShimSockets() string { return r.below(shimSockets) }

// Logs returns the directory of the newest part of mote's own log.
func (r Run) Logs() string { return r.below(logs) }

// Containerd returns containerd's state directory.
func (r Run) Containerd() string { return r.below(containerdState) }

// Runc returns the root directory of runc.
func (r Run) Runc() string { return r.below(runc) }

// CNI returns the directory of the address leases and results of the CNI plugins.
func (r Run) CNI() string { return r.below(cni) }

// DNS returns the directory of the cluster DNS server.
func (r Run) DNS() string { return r.below(dns) }

// Volumes returns the path of the link through which the kubelet reaches Data.Volumes.
func (r Run) Volumes() string { return r.below(volumes) }
