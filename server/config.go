// Package server is mote's control plane: its certificates and kubeconfigs, and kube-apiserver,
// kube-controller-manager and kube-scheduler as components of the calling process.
package server

import "net/netip"

// Config says what control plane to run. It is validated once and never changed afterwards.
type Config struct {
	// DataDir holds the PKI, kubeconfigs and encryption key (<data-dir>/server). Made with mode 0700.
	DataDir string
	// AdminKubeconfig is the path that the administrator's kubeconfig is written to, mode 0600.
	AdminKubeconfig string
	// DatastoreEndpoint is an etcd v3 endpoint, e.g. unix:///run/mote/datastore.sock.
	DatastoreEndpoint string
	// ListenAddress and ListenPort are where kube-apiserver serves HTTPS. Default 0.0.0.0:6443.
	ListenAddress netip.Addr
	ListenPort    int
	// AdvertiseAddress is what the kubernetes Service's endpoint holds: the bridge address.
	AdvertiseAddress netip.Addr
	// TLSSANs are further names and addresses for the apiserver's serving certificate.
	TLSSANs []string
	// ClusterCIDR, ServiceCIDR are the pods' and Services' networks; ClusterDNS lies in ServiceCIDR.
	ClusterCIDR, ServiceCIDR netip.Prefix
	ClusterDomain            string
	// Extra arguments, each name=value without dashes, for the upstream components.
	APIServerArgs, ControllerManagerArgs, SchedulerArgs []string
}
