package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mote-k8s/mote/internal/durable"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/internal/regular"
	"github.com/mote-k8s/mote/machine"
)

// maxKubeconfig limits the size of a kubeconfig, in bytes: one with certificates takes some 6 KiB
// for each cluster.
const maxKubeconfig = 16 << 20

// kubeconfigOptions are the flags of kubeconfig.
type kubeconfigOptions struct {
	server, name, merge, remove string
}

// newKubeconfigCommand returns the verb that prints the admin kubeconfig for use on other machines.
func newKubeconfigCommand(e *env) *cobra.Command {
	var o kubeconfigOptions
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the administrator's kubeconfig, for this machine or another",
		Long: `Print the administrator's kubeconfig, or merge it into a file. Who has it may do everything in the cluster, until its
certificate expires. With --server it names the machine as others reach it: a DNS name or an address, with a port
if it is not that of the API. The name must be in kube-apiserver's certificate, which has the addresses and the name of
the machine and what --tls-san adds.`,
		Example: `  ssh root@edge7 mote kubeconfig --server edge7.example >edge7.yaml
  mote kubeconfig --merge ~/.kube/config
  mote kubeconfig --remove ~/.kube/config`,
		GroupID: groupUse,
		Args:    noArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&o.server, "server", "", "`name` or URL under which the other machine reaches the API (default: that of this machine alone)")
	flags.StringVar(&o.name, "name", "", "`name` of cluster, user and context (default: that of --cluster-name)")
	flags.StringVar(&o.merge, "merge", "", "write it into this `file` besides the clusters that are there, instead of printing it")
	flags.StringVar(&o.remove, "remove", "", "take the cluster out of this `file` again")
	cmd.MarkFlagsMutuallyExclusive("merge", "remove")
	cmd.MarkFlagsMutuallyExclusive("server", "remove")
	load := withSettings(cmd, e, cmd.Name())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot(cmd.Name()); err != nil {
			return err
		}
		return o.run(e, m)
	}
	return cmd
}

func (o kubeconfigOptions) run(e *env, m *machine.Machine) error {
	own, err := loadKubeconfig(m.Kubeconfig())
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no cluster in %s yet; \"mote server\" makes one, and --data-dir names another directory", m.DataDir)
	}
	if err != nil {
		return err
	}
	context := own.Contexts[own.CurrentContext]
	if context == nil || own.Clusters[context.Cluster] == nil || own.AuthInfos[context.AuthInfo] == nil {
		return fmt.Errorf("%s has no whole context; remove it, and mote makes it again", m.Kubeconfig())
	}
	one := kubeconfigEntry{name: own.CurrentContext, cluster: own.Clusters[context.Cluster], user: own.AuthInfos[context.AuthInfo]}
	if o.name != "" {
		one.name = o.name
	}
	if o.server != "" {
		if one.cluster.Server, err = o.remoteURL(m, one.cluster.Server); err != nil {
			return err
		}
	}
	switch {
	case o.merge != "":
		return one.mergeInto(e, o.merge)
	case o.remove != "":
		return one.removeFrom(e, o.remove)
	}
	config := clientcmdapi.NewConfig()
	one.put(config)
	data, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	_, err = e.stdout.Write(data)
	return err
}

// remoteURL returns the API's URL for the name or URL of --server, if kube-apiserver's certificate
// is valid for it. local is the URL on this machine.
func (o kubeconfigOptions) remoteURL(m *machine.Machine, local string) (string, error) {
	text := o.server
	if !strings.Contains(text, "://") {
		if strings.Count(text, ":") > 1 && !strings.HasPrefix(text, "[") {
			text = "[" + text + "]" // IPv6
		}
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/" {
		return "", fmt.Errorf("--server: %q is neither a name nor a URL such as https://edge.example:6443", o.server)
	}
	if u.Port() == "" {
		port := fmt.Sprint(m.HTTPSListenPort)
		if here, err := url.Parse(local); err == nil && here.Port() != "" {
			port = here.Port()
		}
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	u.Path = ""
	path := filepath.Join(layout.Data(m.DataDir).TLS(), "apiserver.crt")
	cert, err := readCertificate(path)
	if err != nil {
		return "", err
	}
	if err := cert.VerifyHostname(u.Hostname()); err != nil {
		names := append([]string(nil), cert.DNSNames...)
		for _, ip := range cert.IPAddresses {
			names = append(names, ip.String())
		}
		return "", fmt.Errorf("--server: kube-apiserver's certificate is not for %s, only for %s; start mote with --tls-san=%[1]s, or tls-san in its configuration",
			u.Hostname(), strings.Join(names, ", "))
	}
	return u.String(), nil
}

func readCertificate(path string) (*x509.Certificate, error) {
	data, err := regular.ReadFile(path, maxKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kube-apiserver's certificate: %w; \"mote server\" makes it", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate; \"mote server\" makes it again", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w; \"mote server\" makes it again", path, err)
	}
	return cert, nil
}

func loadKubeconfig(path string) (*clientcmdapi.Config, error) {
	data, err := regular.ReadFile(path, maxKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	config, err := clientcmd.Load(data)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	return config, nil
}

// kubeconfigEntry is one cluster in a kubeconfig: cluster, user and context of one name.
type kubeconfigEntry struct {
	name    string
	cluster *clientcmdapi.Cluster
	user    *clientcmdapi.AuthInfo
}

// put adds the entry to config, and makes it the current context if config has none. It keeps the
// namespace of an existing context.
func (k kubeconfigEntry) put(config *clientcmdapi.Config) {
	context := clientcmdapi.NewContext()
	if old := config.Contexts[k.name]; old != nil {
		context.Namespace = old.Namespace
	}
	context.Cluster, context.AuthInfo = k.name, k.name
	config.Clusters[k.name], config.AuthInfos[k.name], config.Contexts[k.name] = k.cluster, k.user, context
	if config.CurrentContext == "" {
		config.CurrentContext = k.name
	}
}

// takenIn reports whether config has another cluster of the same name. It is the same cluster if
// the authority is the same.
func (k kubeconfigEntry) takenIn(config *clientcmdapi.Config) bool {
	old := config.Clusters[k.name]
	return old != nil && !bytes.Equal(old.CertificateAuthorityData, k.cluster.CertificateAuthorityData) ||
		old == nil && (config.Contexts[k.name] != nil || config.AuthInfos[k.name] != nil)
}

func (k kubeconfigEntry) mergeInto(e *env, path string) error {
	config, err := loadKubeconfig(path)
	if errors.Is(err, fs.ErrNotExist) {
		config, err = clientcmdapi.NewConfig(), nil
	}
	if err != nil {
		return err
	}
	if k.takenIn(config) {
		return fmt.Errorf("%s has another cluster called %s; choose a name with --name, or remove that one with \"kubectl config delete-cluster %[2]s\"", path, k.name)
	}
	k.put(config)
	if err := replaceKubeconfig(path, config); err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "Next: kubectl --kubeconfig %s --context %s get nodes\n", path, k.name)
	return nil
}

func (k kubeconfigEntry) removeFrom(e *env, path string) error {
	config, err := loadKubeconfig(path)
	if err != nil {
		return err
	}
	if config.Clusters[k.name] == nil && config.Contexts[k.name] == nil {
		fmt.Fprintf(e.stderr, "Nothing to remove: %s has no cluster called %s\n", path, k.name)
		return nil
	}
	if k.takenIn(config) {
		return fmt.Errorf("%s has another cluster called %s, which is not the one in this machine's data directory; it stays", path, k.name)
	}
	delete(config.Clusters, k.name)
	delete(config.AuthInfos, k.name)
	delete(config.Contexts, k.name)
	if config.CurrentContext == k.name {
		config.CurrentContext = ""
	}
	return replaceKubeconfig(path, config)
}

// replaceKubeconfig writes a user's kubeconfig. It follows links, keeps the owner of the file or of
// its directory, and keeps the file's mode; a new file gets 0600.
func replaceKubeconfig(path string, config *clientcmdapi.Config) error {
	data, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	mode := fs.FileMode(0o600)
	info, err := os.Stat(path)
	if err == nil {
		mode = info.Mode().Perm()
	} else if info, err = os.Stat(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write %s: %w; make the directory first", path, err)
	}
	if err := durable.WriteFile(path, data, mode); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			return fmt.Errorf("write kubeconfig: %w", err)
		}
	}
	return nil
}
