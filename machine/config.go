package machine

import (
	"net/netip"

	"github.com/mote-k8s/mote/addons"
	"github.com/mote-k8s/mote/addons/api"
	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/agent/payload"
	"github.com/mote-k8s/mote/server"
	"github.com/mote-k8s/mote/server/pki"
)

// bridge is the name of the pod network's interface.
const bridge = "mote0"

func (m *Machine) payloadRoot() string { return m.data().Payload() }

// serverURL returns the URL at which the node reaches the apiserver: on loopback, unless the
// apiserver listens only on another address.
func (m *Machine) serverURL() string {
	addr := m.HTTPSListenAddress
	switch addr {
	case netip.IPv4Unspecified():
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case netip.IPv6Unspecified():
		addr = netip.IPv6Loopback()
	}
	return "https://" + netip.AddrPortFrom(addr, uint16(m.HTTPSListenPort)).String()
}

func (m *Machine) credentialsDir() string {
	return m.data().Credentials()
}

// nodeIP returns the node's address in the cluster: the one from the settings, or else the
// bridge's, which is stable.
func (m *Machine) nodeIP() netip.Addr {
	if m.NodeIP.IsValid() {
		return m.NodeIP
	}
	return m.BridgeAddress()
}

// agentConfig returns the configuration of the node.
func (m *Machine) agentConfig() agent.Config {
	return agent.Config{
		DataDir:        m.DataDir,
		RunDir:         m.RunDir,
		KubeletDir:     m.KubeletDir,
		PayloadDir:     payload.Dir(m.payloadRoot()),
		ImagesDir:      m.ImageDir,
		Server:         m.serverURL(),
		CredentialsDir: m.credentialsDir(),
		NodeName:       m.NodeName,
		NodeIP:         m.nodeIP(),
		NodeLabels:     m.NodeLabels,
		NodeTaints:     m.NodeTaints,
		ClusterCIDR:    m.ClusterCIDR,
		PodCIDR:        m.PodCIDR(),
		ServiceCIDR:    m.ServiceCIDR,
		ClusterDNS:     m.ClusterDNS,
		ClusterDomain:  m.ClusterDomain,
		Bridge:         bridge,
		CNI:            m.CNI,
		Proxy:          m.Proxy,
		SeccompDefault: m.Profile == server.ProfileCIS,
		MetricsAddress: m.MetricsAddress(),
		KubeletArgs:    m.KubeletArgs,
		ProxyArgs:      m.ProxyArgs,
	}
}

// addonsConfig returns the configuration of the enabled addons.
func (m *Machine) addonsConfig() addons.Config {
	client, metrics := pki.Addons(m.data()), pki.MetricsServer(m.data())
	var metricsAddress netip.Addr
	if m.ExposeMetrics == "on" {
		metricsAddress = m.MetricsAddress()
	}
	scraped := []string{"kube-controller-manager", "kube-scheduler"}
	if m.Proxy != "none" {
		scraped = append(scraped, "kube-proxy")
	}
	return addons.Config{
		Access: api.Access{
			Server:   m.serverURL(),
			CAFile:   client.CAFile,
			CertFile: client.CertFile,
			KeyFile:  client.KeyFile,
		},
		NodeName:    m.NodeName,
		Address:     m.addonsAddress(),
		Bridge:      m.addonsBridge(),
		Attachments: agent.AttachmentsDir(m.agentConfig()),

		LoadBalancerPool: m.LoadBalancerPool,
		IngressHTTPPort:  m.IngressHTTPPort,
		IngressHTTPSPort: m.IngressHTTPSPort,
		ServiceCIDR:      m.ServiceCIDR,
		ClusterDNS:       m.ClusterDNS,
		ClusterDomain:    m.ClusterDomain,
		DataDir:          m.DataDir,
		RunDir:           m.RunDir,
		ManifestsDir:     m.ManifestsDir,
		// The pods' file comes first: it names the servers behind a stub resolver on loopback. The
		// stub itself is used if there is nothing else.
		ResolvConfs:     []string{m.data().ResolvConf(), "/etc/resolv.conf"},
		MetricsCertFile: metrics.CertFile,
		MetricsKeyFile:  metrics.KeyFile,

		MetricsAddress: metricsAddress, Scraped: scraped,

		Disabled: m.Disable,
	}
}

// addonsAddress returns the address at which pods reach the services of this process: the bridge's,
// which other machines cannot reach, or the node's with another pod network than the bridge.
func (m *Machine) addonsAddress() netip.Addr {
	if m.CNI == "bridge" {
		return m.BridgeAddress()
	}
	return m.nodeIP()
}

// addonsBridge returns the interface of the pod network if mote manages that network.
func (m *Machine) addonsBridge() string {
	if m.CNI == "bridge" {
		return bridge
	}
	return ""
}

// Certificates returns the certificates that the settings describe.
func (m *Machine) Certificates() pki.Certificates {
	c := pki.Certificates{
		DataDir: m.DataDir, NodeDir: m.credentialsDir(), AdminKubeconfig: m.Kubeconfig(), TLSSANs: m.TLSSANs,
	}
	if m.WriteKubeconfig != "" {
		c.Copies = []string{m.WriteKubeconfig}
	}
	return c
}
