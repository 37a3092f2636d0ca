package dns

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-k8s/mote/addons/api"
)

const (
	namespace   = metav1.NamespaceSystem
	serviceName = "kube-dns"
	// configName and customName are the ConfigMaps of the Corefile and of the users' additions to
	// it.
	configName, customName = "coredns", "coredns-custom"
	corefileKey            = "Corefile"
	labelApp               = "k8s-app"
	// account is the identity of the kubernetes plugin towards the apiserver. It has upstream's
	// name and rights.
	account  = "coredns"
	roleName = "system:coredns"

	dnsPort     = 53
	metricsPort = 9153
	// defaultSum is the annotation that distinguishes a default Corefile from an edited one. It
	// holds the sum of the Corefile that mote wrote.
	defaultSum = "mote.dev/default-sum"
)

// objects returns the objects that the addon owns, except the Corefile's ConfigMap, which users may
// edit.
func (c Config) objects() []api.Object {
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{
			labelApp: serviceName, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
		}}
	}
	slice, legacy := meta(serviceName), meta(serviceName)
	slice.Labels[discoveryv1.LabelServiceName] = serviceName
	slice.Labels[discoveryv1.LabelManagedBy] = api.Mote
	legacy.Labels[discoveryv1.LabelSkipMirror] = "true"
	return []api.Object{
		{Resource: corev1.SchemeGroupVersion.WithResource("serviceaccounts"), Object: &corev1.ServiceAccount{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: meta(account),
		}},
		{Resource: rbacv1.SchemeGroupVersion.WithResource("clusterroles"), Object: role()},
		{Resource: rbacv1.SchemeGroupVersion.WithResource("clusterrolebindings"), Object: roleBinding()},
		{Resource: corev1.SchemeGroupVersion.WithResource("services"), Object: &corev1.Service{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta(serviceName),
			Spec: corev1.ServiceSpec{ClusterIP: c.ClusterIP.String(), Ports: servicePorts()},
		}},
		{Resource: discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), Object: c.endpointSlice(slice)},
		{Resource: corev1.SchemeGroupVersion.WithResource("endpoints"), Object: c.endpoints(legacy)},
	}
}

func servicePorts() []corev1.ServicePort {
	return []corev1.ServicePort{
		{Name: "dns", Protocol: corev1.ProtocolUDP, Port: dnsPort, TargetPort: intstr.FromInt32(dnsPort)},
		{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: dnsPort, TargetPort: intstr.FromInt32(dnsPort)},
		{Name: "metrics", Protocol: corev1.ProtocolTCP, Port: metricsPort, TargetPort: intstr.FromInt32(metricsPort)},
	}
}

// endpointPort returns the port on which this process serves a Service's port.
func endpointPort(p corev1.ServicePort) int32 {
	if p.Port == dnsPort {
		return Port
	}
	return p.Port
}

// Pod describes the server at address as a pod for NetworkPolicies. It has the labels and ports of
// stock CoreDNS' pods.
func Pod(address netip.Addr) api.Server {
	pod := api.Server{Namespace: namespace, Labels: map[string]string{labelApp: serviceName}, Address: address}
	for _, p := range servicePorts() {
		pod.Ports = append(pod.Ports, api.ServerPort{
			Name: p.Name, Protocol: p.Protocol, Port: p.TargetPort.IntVal, Served: endpointPort(p),
		})
	}
	return pod
}

func (c Config) endpointSlice(meta metav1.ObjectMeta) *discoveryv1.EndpointSlice {
	ready := true
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, ObjectMeta: meta,
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{c.Address.String()}, NodeName: &c.NodeName,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		}},
	}
	for _, p := range servicePorts() {
		port := endpointPort(p)
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &port})
	}
	return slice
}

func role() *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{
		TypeMeta:   metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRole"},
		ObjectMeta: metav1.ObjectMeta{Name: roleName, Labels: map[string]string{labelApp: serviceName}},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"services", "pods", "namespaces"}, Verbs: []string{"list", "watch"}},
			{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
		},
	}
}

func roleBinding() *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRoleBinding"},
		ObjectMeta: metav1.ObjectMeta{Name: roleName, Labels: map[string]string{labelApp: serviceName}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: roleName},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: account}},
	}
}

// defaultCorefile returns upstream's Corefile for Kubernetes with two differences. It leaves out
// the plugins that would open ports on the machine. It also changes how often a name server that
// does not answer is tried: upstream tries every half second, day and night, on a machine that is
// offline.
func (c Config) defaultCorefile() string {
	return fmt.Sprintf(`# mote reads this ConfigMap; a change is in force within seconds. When it is wrong the last good one
# stays, and an event here says why. %[3]s holds additions: *.override for this
# block, *.server for blocks of your own.
.:53 {
    errors
    kubernetes %[1]s in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    prometheus %[2]s:9153
    loop
    import custom/*.override
    forward . /etc/resolv.conf {
        max_concurrent 1000
        health_check 10s
    }
    cache 30 {
        disable success %[1]s
        disable denial %[1]s
    }
    loadbalance
}
import custom/*.server
`, c.Domain, c.Address, customName)
}

func sum(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:8])
}

// untouched reports whether mote made a ConfigMap and its Corefile is unchanged since then.
func untouched(config *corev1.ConfigMap) bool {
	want := config.Annotations[defaultSum]
	return config.Labels[api.ManagedBy] == api.Mote && want != "" && want == sum(config.Data[corefileKey])
}

// keepConfig makes the Corefile's ConfigMap if it is missing. It updates an unedited one that comes
// from an older version or other settings.
func (c Config) keepConfig(ctx context.Context, client kubernetes.Interface) error {
	maps := client.CoreV1().ConfigMaps(namespace)
	text := c.defaultCorefile()
	want := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name: configName, Namespace: namespace,
			Labels:      map[string]string{api.ManagedBy: api.Mote, labelApp: serviceName},
			Annotations: map[string]string{defaultSum: sum(text)},
		},
		Data: map[string]string{corefileKey: text},
	}
	present, err := maps.Get(ctx, configName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = maps.Create(ctx, want, metav1.CreateOptions{})
	case err == nil && untouched(present) && present.Data[corefileKey] != text:
		want.ResourceVersion = present.ResourceVersion
		_, err = maps.Update(ctx, want, metav1.UpdateOptions{})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("keep ConfigMap %s/%s: %w", namespace, configName, err)
	}
	return nil
}

// Remove deletes what the addon made in the cluster, except an edited Corefile.
func Remove(ctx context.Context, access api.Access) error {
	config := access.Admin(Name)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make %s's client: %w", Name, err)
	}
	objects, err := api.NewObjects(config, Name)
	if err != nil {
		return err
	}
	maps := client.CoreV1().ConfigMaps(namespace)
	present, err := maps.Get(ctx, configName, metav1.GetOptions{})
	if err == nil && untouched(present) {
		err = maps.Delete(ctx, configName, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &present.UID}})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove ConfigMap %s/%s: %w", namespace, configName, err)
	}
	// Names suffice here, and the rest of the configuration does not matter.
	return objects.Remove(ctx, Config{}.objects()...)
}
