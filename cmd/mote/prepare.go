package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mote-k8s/mote/cmd/mote/settings"
	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/internal/limit"
	"github.com/mote-k8s/mote/server"
	"github.com/mote-k8s/mote/server/pki"
)

// prepare makes the control plane's files and those of its one node.
func prepare(s *settings.Settings, store *datastore.Datastore, budgets *limit.Budgets, mostMemory int64) (*server.ControlPlane, error) {
	hasState, err := store.HasState()
	if err != nil {
		return nil, err
	}
	plane, err := server.Prepare(server.Config{
		DataDir:               s.DataDir,
		AdminKubeconfig:       s.Kubeconfig(),
		ClusterName:           clusterName(s),
		KubeconfigCopy:        s.WriteKubeconfig,
		HasState:              hasState,
		DatastoreEndpoint:     store.Endpoint(),
		DatastoreCAFile:       s.DatastoreCAFile,
		DatastoreCertFile:     s.DatastoreCertFile,
		DatastoreKeyFile:      s.DatastoreKeyFile,
		ListenAddress:         s.HTTPSListenAddress,
		ListenPort:            s.HTTPSListenPort,
		AdvertiseAddress:      nodeIP(s),
		TLSSANs:               s.TLSSANs,
		ClusterCIDR:           s.ClusterCIDR,
		ServiceCIDR:           s.ServiceCIDR,
		ClusterDomain:         s.ClusterDomain,
		Profile:               s.Profile,
		AuditPolicy:           s.AuditPolicy,
		APIServerArgs:         s.APIServerArgs,
		ControllerManagerArgs: s.ControllerManagerArgs,
		SchedulerArgs:         s.SchedulerArgs,
		Budgets:               budgets,
		Memory:                mostMemory,
	})
	var lost *pki.LostKeysError
	if errors.As(err, &lost) {
		return nil, keysHint(s, lost)
	}
	if err != nil {
		return nil, err
	}
	if err := plane.IssueNode(credentialsDir(s), s.NodeName, []netip.Addr{nodeIP(s)}); err != nil {
		return nil, err
	}
	return plane, recordNodeName(s)
}

// keysHint adds to a refusal for lost keys how to get them back, and how to go on without them.
func keysHint(s *settings.Settings, lost *pki.LostKeysError) error {
	from := "from a backup of that directory"
	// Snapshots that cannot be listed are of no use now.
	if list, err := snapshot.Folder(s.SnapshotDir).List(); err == nil {
		good := slices.IndexFunc(list, func(one snapshot.Snapshot) bool { return one.Err == nil && one.Cluster != "" })
		if good >= 0 {
			from = fmt.Sprintf("with \"mote datastore snapshot restore %s\" (state and keys of %s), or %s",
				list[good].Name, list[good].Time.Format(time.RFC3339), from)
		}
	}
	if lost.Sealed {
		return fmt.Errorf("%w; restore them %s; \"mote reset\" removes the cluster to start over", lost, from)
	}
	return fmt.Errorf("%w; restore them %s; to give the cluster new keys on purpose, run \"mote certs init\"", lost, from)
}
