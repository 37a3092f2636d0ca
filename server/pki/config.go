package pki

import (
	"net/netip"
)

// Config configures the certificates and kubeconfigs of a control plane.
type Config struct {
	// URL is the URL at which mote's own components and the administrator on this machine reach the
	// apiserver.
	URL string
	// ClusterName is the name of the cluster, its administrator and the context in kubeconfigs.
	ClusterName string
	// ClusterDomain is the DNS suffix of Services, which is part of the apiserver's names.
	ClusterDomain string
	// ServiceAddress is the kubernetes Service's address; AdvertiseAddress and ListenAddress are
	// the apiserver's. ListenAddress may be unspecified.
	ServiceAddress, AdvertiseAddress, ListenAddress netip.Addr
	// TLSSANs are further names and addresses for the apiserver's serving certificate.
	TLSSANs []string
	// AdminKubeconfig is the path of the admin kubeconfig. KubeconfigCopy is the path of a copy of
	// it, anywhere, or empty.
	AdminKubeconfig, KubeconfigCopy string
}
