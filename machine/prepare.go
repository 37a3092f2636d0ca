package machine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/internal/limit"
	"github.com/mote-k8s/mote/server"
	"github.com/mote-k8s/mote/server/pki"
)

// Prepare creates the files of the control plane and of its one node.
func (m *Machine) Prepare(store *datastore.Datastore, budgets *limit.Budgets, mostMemory int64) (*server.ControlPlane, error) {
	hasState, err := store.HasState()
	if err != nil {
		return nil, err
	}
	plane, err := server.Prepare(server.Config{
		DataDir:               m.DataDir,
		AdminKubeconfig:       m.Kubeconfig(),
		ClusterName:           m.KubeconfigName(),
		KubeconfigCopy:        m.WriteKubeconfig,
		HasState:              hasState,
		DatastoreEndpoint:     store.Endpoint(),
		DatastoreCAFile:       m.DatastoreCAFile,
		DatastoreCertFile:     m.DatastoreCertFile,
		DatastoreKeyFile:      m.DatastoreKeyFile,
		ListenAddress:         m.HTTPSListenAddress,
		ListenPort:            m.HTTPSListenPort,
		AdvertiseAddress:      m.nodeIP(),
		TLSSANs:               m.TLSSANs,
		ClusterCIDR:           m.ClusterCIDR,
		NodeRanges:            map[string]netip.Prefix{m.NodeName: m.PodCIDR()},
		ServiceCIDR:           m.ServiceCIDR,
		ClusterDomain:         m.ClusterDomain,
		MetricsAddress:        m.MetricsAddress(),
		Profile:               m.Profile,
		AuditPolicy:           m.AuditPolicy,
		APIServerArgs:         m.APIServerArgs,
		ControllerManagerArgs: m.ControllerManagerArgs,
		SchedulerArgs:         m.SchedulerArgs,
		Budgets:               budgets,
		Memory:                mostMemory,
	})
	var lost *pki.LostKeysError
	if errors.As(err, &lost) {
		return nil, m.keysHint(lost)
	}
	if err != nil {
		return nil, err
	}
	if err := plane.IssueNode(m.credentialsDir(), m.NodeName, []netip.Addr{m.nodeIP()}); err != nil {
		return nil, err
	}
	return plane, m.recordNodeName()
}

// restoreCommand returns the command that restores a snapshot. An encrypted snapshot also needs the
// private key.
func restoreCommand(one snapshot.Snapshot) string {
	command := "mote datastore snapshot restore " + one.Name
	if one.Encryption != nil {
		command += " --identity FILE"
	}
	return command
}

// keysHint adds two remedies to an error for lost keys: how to get the keys back, and how to
// continue without them.
func (m *Machine) keysHint(lost *pki.LostKeysError) error {
	from := "from a backup of that directory"
	// If the snapshots cannot be listed, the hint leaves them out.
	if list, err := snapshot.Folder(m.SnapshotDir).List(); err == nil {
		good := slices.IndexFunc(list, func(one snapshot.Snapshot) bool { return one.Err == nil && one.Cluster != "" })
		if good >= 0 {
			from = fmt.Sprintf("with \"%s\" (state and keys of %s), or %s",
				restoreCommand(list[good]), list[good].Time.Format(time.RFC3339), from)
		}
	}
	if lost.Sealed {
		return fmt.Errorf("%w; restore them %s; \"mote reset\" removes the cluster to start over", lost, from)
	}
	return fmt.Errorf("%w; restore them %s; to give the cluster new keys on purpose, run \"mote certs init\"", lost, from)
}
