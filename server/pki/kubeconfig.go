package pki

import (
	"fmt"
	"os"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mote-k8s/mote/internal/durable"
)

// DefaultClusterName is the name of the cluster, user and context in kubeconfigs of a cluster
// without a name of its own. In the past it was the name in the kubeconfigs of every cluster.
const DefaultClusterName = "mote"

// writeAdminKubeconfig writes the one kubeconfig that people copy to other machines, which is why
// it contains the certificates. It uses the cluster's name, so that the kubeconfigs of several
// clusters can be merged into one file.
func (c *Credentials) writeAdminKubeconfig(cfg Config) error {
	cert, err := os.ReadFile(c.Path("admin.crt"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(c.Path("admin.key"))
	if err != nil {
		return err
	}
	cluster := &clientcmdapi.Cluster{Server: cfg.URL, CertificateAuthorityData: c.serverCA.trusted}
	user := &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	config := newKubeconfig(cfg.ClusterName, cluster, user)
	keepContexts(config, cfg.AdminKubeconfig)
	return saveKubeconfig(cfg.AdminKubeconfig, config)
}

// keepContexts keeps the changes that people make in the admin kubeconfig: the namespace that they
// chose, and the context with the name that all clusters had in the past, which scripts may use.
func keepContexts(config *clientcmdapi.Config, path string) {
	old, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return // there is none yet, or it is damaged
	}
	name := config.CurrentContext
	if context := old.Contexts[old.CurrentContext]; context != nil {
		config.Contexts[name].Namespace = context.Namespace
	}
	if context := old.Contexts[DefaultClusterName]; context != nil && name != DefaultClusterName {
		config.Contexts[DefaultClusterName] = &clientcmdapi.Context{Cluster: name, AuthInfo: name, Namespace: context.Namespace}
	}
}

// adminUser returns the user of the current context, or nil.
func adminUser(config *clientcmdapi.Config) *clientcmdapi.AuthInfo {
	if context := config.Contexts[config.CurrentContext]; context != nil {
		return config.AuthInfos[context.AuthInfo]
	}
	return nil
}

// CopyKubeconfig brings the copy of the admin kubeconfig up to date, if one is configured.
func CopyKubeconfig(cfg Config) error {
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
	return durable.UpdateFile(path, data, 0o600)
}

// Kubeconfig returns the path of a component's own kubeconfig.
func (c *Credentials) Kubeconfig(component string) string {
	return c.data.ServerKubeconfig(component)
}
