package main

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
)

// nodeAddress is the bridge's, the first of the node's pod network, as in mote.
const nodeAddress = "10.42.0.1"

const kubeconfigTemplate = `apiVersion: v1
kind: Config
current-context: stock
contexts: [{name: stock, context: {cluster: stock, user: stock}}]
clusters:
- name: stock
  cluster: {server: "https://127.0.0.1:6443", certificate-authority: %[1]s/ca.crt}
users:
- name: stock
  user: {client-certificate: %[1]s/%[2]s.crt, client-key: %[1]s/%[2]s.key}
`

const encryptionTemplate = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - secretbox: {keys: [{name: bench, secret: %s}]}
  - identity: {}
`

// Build machines often lack CAP_SYS_RESOURCE, which is needed to lower an oom_score_adj. Hence
// restrict_oom_score_adj here and oomScoreAdj 0 below.
const containerdTemplate = `version = 4
root = "/var/lib/containerd"
state = "/run/containerd"
[plugins."io.containerd.server.v1.grpc"]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.server.v1.ttrpc"]
  address = "/run/containerd/containerd.sock.ttrpc"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "%[2]s"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  conf_dir = "/var/lib/stock/cni"
  bin_dirs = ["%[1]s"]
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "%[1]s/runc"
  SystemdCgroup = false
`

const cniConfig = `{"cniVersion": "1.0.0", "name": "stock", "plugins": [
  {"type": "bridge", "bridge": "` + bridgeName + `", "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.42.0.0/24", "gateway": "` + nodeAddress + `"}]]}},
  {"type": "portmap", "backend": "nftables", "snat": true, "capabilities": {"portMappings": true}}
]}
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: ` + nodeAddress + `
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /var/lib/stock/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: /var/lib/stock/kubelet-server.crt
tlsPrivateKeyFile: /var/lib/stock/kubelet-server.key
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [10.43.0.10]
clusterDomain: cluster.local
oomScoreAdj: 0
`

// Only the first network namespace can write the conntrack limits: 0 leaves them unchanged.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: 10.42.0.0/16
clientConnection: {kubeconfig: /var/lib/stock/proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
oomScoreAdj: 0
metricsBindAddress: 127.0.0.1:10249
`

func (s *stock) writeConfigs() error {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"encryption.yaml":    fmt.Sprintf(encryptionTemplate, base64.StdEncoding.EncodeToString(key)),
		"containerd.toml":    fmt.Sprintf(containerdTemplate, s.trial.Payload, pauseImage),
		"cni/bench.conflist": cniConfig,
		"kubelet.yaml":       kubeletConfig,
		"proxy.yaml":         proxyConfig,
	} {
		if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *stock) apiserverFlags() []string {
	return []string{
		"--etcd-servers=http://" + etcdAddress,
		"--advertise-address=" + nodeAddress,
		"--client-ca-file=" + s.path("ca.crt"),
		"--tls-cert-file=" + s.path("apiserver.crt"),
		"--tls-private-key-file=" + s.path("apiserver.key"),
		"--service-cluster-ip-range=10.43.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + s.path("service-account.pub"),
		"--service-account-signing-key-file=" + s.path("service-account.key"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--kubelet-certificate-authority=" + s.path("ca.crt"),
		"--kubelet-client-certificate=" + s.path("apiserver-kubelet.crt"),
		"--kubelet-client-key=" + s.path("apiserver-kubelet.key"),
		"--proxy-client-cert-file=" + s.path("front-proxy.crt"),
		"--proxy-client-key-file=" + s.path("front-proxy.key"),
		"--requestheader-client-ca-file=" + s.path("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--encryption-provider-config=" + s.path("encryption.yaml"),
	}
}

func (s *stock) controllerManagerFlags() []string {
	return append(s.clientFlags("controller-manager"),
		"--service-account-private-key-file="+s.path("service-account.key"),
		"--root-ca-file="+s.path("ca.crt"),
		"--cluster-signing-cert-file="+s.path("ca.crt"),
		"--cluster-signing-key-file="+s.path("ca.key"),
		"--use-service-account-credentials=true",
		"--kube-api-qps=200", // as in mote: at the default of 20 its controllers need 4 s to start
		"--kube-api-burst=400",
	)
}

func (s *stock) schedulerFlags() []string { return s.clientFlags("scheduler") }

func (s *stock) clientFlags(name string) []string {
	config := s.path(name + ".kubeconfig")
	return []string{
		"--kubeconfig=" + config,
		"--authentication-kubeconfig=" + config,
		"--authorization-kubeconfig=" + config,
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
	}
}

func (s *stock) kubeletFlags() []string {
	return []string{
		s.configFlag("kubelet.yaml"),
		"--kubeconfig=" + s.path("kubelet.kubeconfig"),
		"--hostname-override=" + nodeName,
		"--node-ip=" + nodeAddress,
		"--root-dir=/var/lib/kubelet",
	}
}
