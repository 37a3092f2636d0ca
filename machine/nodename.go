package machine

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/mote-k8s/mote/internal/durable"
	"github.com/mote-k8s/mote/internal/regular"
	"github.com/mote-k8s/mote/machine/settings"
)

// maxNameFile limits the size of the files that contain a node's name, in bytes: a certificate
// takes some 2 KiB.
const maxNameFile = 64 << 10

// namelessHost is the node's name on a host without a name.
const namelessHost = "mote"

// nodeNameFile returns the path of the file with the name of the node that owns the data directory.
// A user may edit it while mote is stopped, to rename the node.
func (m *Machine) nodeNameFile() string { return m.data().NodeName() }

// Named returns m with the name of its node. A data directory belongs to one node for good: pods,
// volumes and leases refer to its name. So the name in the data directory comes first, then the
// setting, then the host's name. note explains why the node's name differs from the host's; it is
// empty if there is nothing to explain.
func (m *Machine) Named() (named *Machine, note string, err error) {
	recorded, err := m.recordedNodeName()
	if err != nil {
		return nil, "", err
	}
	named = m.with(func(*settings.Settings) {})
	switch {
	case recorded == "" && m.NodeName != "":
		return named, "", nil
	case recorded != "" && m.NodeName != "" && m.NodeName != recorded:
		return nil, "", fmt.Errorf("node-name is %q, but the data directory %s belongs to node %q: drop the setting; or, to rename the node, "+
			"write %[1]s into %[4]s and, once it runs, forget the old one with \"mote kubectl delete node %[3]s\" (volumes of class local stay with that)",
			m.NodeName, m.DataDir, recorded, m.nodeNameFile())
	case recorded != "" && m.NodeName != "":
		return named, "", nil
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, "", fmt.Errorf("read the host's name: %w; set --node-name", err)
	}
	if recorded != "" {
		named.NodeName = recorded
		if !strings.EqualFold(host, recorded) && !(nameless(host) && recorded == namelessHost) {
			note = fmt.Sprintf("the host is called %q now; the node keeps the name %s, which the data directory %s belongs to", host, recorded, m.DataDir)
		}
		return named, note, nil
	}
	named.NodeName, note, err = hostNodeName(host)
	return named, note, err
}

// KubeconfigName returns the name of the cluster of m in kubeconfigs, which comes from its node's
// name.
func (m *Machine) KubeconfigName() string {
	switch {
	case m.ClusterName != "":
		return m.ClusterName
	case m.NodeName == namelessHost:
		return namelessHost
	}
	return "mote-" + m.NodeName
}

// NodeNameOf returns the name of the node of m for use in a message. If the name cannot be found,
// the start of mote reports why.
func (m *Machine) NodeNameOf() string {
	if named, _, err := m.Named(); err == nil {
		return named.NodeName
	}
	return m.NodeName
}

// hostNodeName derives a node's name from a host's.
func hostNodeName(host string) (name, note string, err error) {
	if nameless(host) {
		return namelessHost, fmt.Sprintf("the host has no name of its own (%q), so the node is called %s; --node-name sets another before the first start", host, namelessHost), nil
	}
	// Kubernetes names are lower case; a host's name may have capitals.
	if name, err = settings.ParseNodeName(strings.ToLower(host)); err != nil {
		return "", "", fmt.Errorf("the host's name: %w; set --node-name", err)
	}
	return name, "", nil
}

// nameless reports whether a host has no name of its own. The kernel's default is "(none)".
func nameless(host string) bool {
	switch strings.ToLower(host) {
	case "", "(none)", "localhost", "localhost.localdomain":
		return true
	}
	return false
}

// recordedNodeName returns the name of the node that owns the data directory, or "" before the
// first start. Directories that are older than the name file have the name in the kubelet's
// certificate only.
func (m *Machine) recordedNodeName() (string, error) {
	path := m.nodeNameFile()
	data, err := regular.ReadFile(path, maxNameFile)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) { // locking the directory reports its faults
		return certifiedNodeName(filepath.Join(m.credentialsDir(), "kubelet-client.crt"))
	}
	if err != nil {
		return "", fmt.Errorf("read the node's name: %w", err)
	}
	name, err := settings.ParseNodeName(strings.TrimSpace(string(data)))
	if err != nil {
		return "", fmt.Errorf("%s: %w; write the node's name into it", path, err)
	}
	return name, nil
}

// certifiedNodeName returns the node that a kubelet's client certificate is for. A damaged
// certificate yields no name: the start replaces it.
func certifiedNodeName(path string) (string, error) {
	data, err := regular.ReadFile(path, maxNameFile)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the node's name: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return "", nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", nil
	}
	name, found := strings.CutPrefix(cert.Subject.CommonName, "system:node:")
	if !found {
		return "", nil
	}
	return name, nil
}

// recordNodeName saves the node's name for all later starts.
func (m *Machine) recordNodeName() error {
	path := m.nodeNameFile()
	if data, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(data)) == m.NodeName {
		return nil
	}
	if err := durable.WriteFile(path, []byte(m.NodeName+"\n"), 0o600); err != nil {
		return fmt.Errorf("keep the node's name: %w", err)
	}
	return nil
}
