package server

import (
	"fmt"
	"os"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// defaultClusterName names the cluster, user and context in kubeconfigs of a cluster without a name of its own. It once named
// those of every cluster.
const defaultClusterName = "mote"

// writeAdminKubeconfig writes the one kubeconfig that people copy elsewhere, hence with the certificates inside. Its
// names are the cluster's, so that those of several clusters can be merged into one file.
func (c *credentials) writeAdminKubeconfig(cfg Config) error {
	cert, err := os.ReadFile(c.tls("admin.crt"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(c.tls("admin.key"))
	if err != nil {
		return err
	}
	cluster := &clientcmdapi.Cluster{Server: cfg.url(), CertificateAuthorityData: c.serverCA.trusted}
	user := &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	config := newKubeconfig(cfg.ClusterName, cluster, user)
	keepContexts(config, cfg.AdminKubeconfig)
	return saveKubeconfig(cfg.AdminKubeconfig, config)
}

// keepContexts keeps what people do to a kubeconfig of mote's: the namespace that they chose, and the context of the name that all
// clusters once had, which scripts may name.
func keepContexts(config *clientcmdapi.Config, path string) {
	old, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return // the first one, or a damaged one
	}
	name := config.CurrentContext
	if context := old.Contexts[old.CurrentContext]; context != nil {
		config.Contexts[name].Namespace = context.Namespace
	}
	if context := old.Contexts[defaultClusterName]; context != nil && name != defaultClusterName {
		config.Contexts[defaultClusterName] = &clientcmdapi.Context{Cluster: name, AuthInfo: name, Namespace: context.Namespace}
	}
}

// adminUser returns the user of the current context, or nil.
func adminUser(config *clientcmdapi.Config) *clientcmdapi.AuthInfo {
	if context := config.Contexts[config.CurrentContext]; context != nil {
		return config.AuthInfos[context.AuthInfo]
	}
	return nil
}

// copyKubeconfig brings the copy of the administrator's kubeconfig up to date, if there is to be one.
func copyKubeconfig(cfg Config) error {
	if cfg.KubeconfigCopy == "" {
		return nil
	}
	data, err := os.ReadFile(cfg.AdminKubeconfig)
	if err != nil {
		return err
	}
	return updateCopy(cfg.KubeconfigCopy, data)
}

// writeKubeconfig writes a component's kubeconfig.
func writeKubeconfig(path, name string, cluster *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo) error {
	return saveKubeconfig(path, newKubeconfig(name, cluster, user))
}

func newKubeconfig(name string, cluster *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo) *clientcmdapi.Config {
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = cluster
	config.AuthInfos[name] = user
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	return config
}

func saveKubeconfig(path string, config *clientcmdapi.Config) error {
	data, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return updateFile(path, data, 0o600)
}

// kubeconfig is the path of a component's own kubeconfig.
func (c *credentials) kubeconfig(component string) string {
	return c.data.ServerKubeconfig(component)
}
