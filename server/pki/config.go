package pki

import (
	"net/netip"
)

// Config says what the certificates and kubeconfigs of a control plane are for.
type Config struct {
	// URL is where mote's own parts and the administrator on this machine reach the apiserver.
	URL string
	// ClusterName is what kubeconfigs call the cluster, its administrator and the context.
	ClusterName string
	// ClusterDomain is the DNS suffix of Services, which is in the apiserver's names.
	ClusterDomain string
	// ServiceAddress is the kubernetes Service's address; AdvertiseAddress and ListenAddress are
	// the apiserver's. ListenAddress may be unspecified.
	ServiceAddress, AdvertiseAddress, ListenAddress netip.Addr
	// TLSSANs are further names and addresses for the apiserver's serving certificate.
	TLSSANs []string
	// AdminKubeconfig is the path of the administrator's kubeconfig. KubeconfigCopy is the path of
	// a further copy of it, anywhere, or empty.
	AdminKubeconfig, KubeconfigCopy string
}
