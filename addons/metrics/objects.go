package metrics

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/mote-k8s/mote/addons/api"
)

// These are upstream's names, which other tools know.
const (
	namespace = metav1.NamespaceSystem
	account   = "metrics-server" // of the Service and the service account
	roleName  = "system:metrics-server"

	readerRole    = "system:aggregated-metrics-reader"
	delegatorName = account + ":system:auth-delegator"
	authReader    = account + "-auth-reader"

	portName    = "https"
	servicePort = 443
)

// meta labels an object like upstream's objects.
func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"k8s-app": account}}
}

// objects returns the objects that must exist before the API is served.
func (c Config) objects() []api.Object {
	service := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta(namespace, account),
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{
			Name: portName, Protocol: corev1.ProtocolTCP, Port: servicePort, TargetPort: intstr.FromInt32(Port),
		}}},
	}
	objects := []api.Object{
		{Resource: corev1.SchemeGroupVersion.WithResource("serviceaccounts"), Object: &corev1.ServiceAccount{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: meta(namespace, account),
		}},
		{Resource: corev1.SchemeGroupVersion.WithResource("services"), Object: service},
		{Resource: discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), Object: c.endpointSlice()},
	}
	return append(objects, rights()...)
}

func (c Config) endpointSlice() *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  meta(namespace, account),
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{c.Address.String()}, NodeName: &c.NodeName,
			Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
		}},
		Ports: []discoveryv1.EndpointPort{{
			Name: new(portName), Protocol: new(corev1.ProtocolTCP), Port: new(int32(Port)),
		}},
	}
	slice.Labels[discoveryv1.LabelServiceName] = account
	slice.Labels[discoveryv1.LabelManagedBy] = api.Mote
	return slice
}

// rights returns upstream's roles: the rights of the account, and the right to read metrics.
func rights() []api.Object {
	role := func(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{
			TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRole"},
			ObjectMeta: meta("", name), Rules: rules,
		}
	}
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: account}}
	bind := func(name, role string) *rbacv1.ClusterRoleBinding {
		return &rbacv1.ClusterRoleBinding{
			TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRoleBinding"},
			ObjectMeta: meta("", name), Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		}
	}
	read := []string{"get", "list", "watch"}
	reader := role(readerRole, rbacv1.PolicyRule{
		APIGroups: []string{v1beta1.SchemeGroupVersion.Group}, Resources: []string{"pods", "nodes"}, Verbs: read,
	})
	for _, to := range []string{"view", "edit", "admin"} {
		reader.Labels["rbac.authorization.k8s.io/aggregate-to-"+to] = "true"
	}
	roles, bindings := rbacv1.SchemeGroupVersion.WithResource("clusterroles"), rbacv1.SchemeGroupVersion.WithResource("clusterrolebindings")
	return []api.Object{
		{Resource: roles, Object: reader},
		{Resource: roles, Object: role(roleName,
			rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"nodes/metrics"}, Verbs: []string{"get"}},
			rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods", "nodes"}, Verbs: read},
		)},
		{Resource: bindings, Object: bind(roleName, roleName)},
		{Resource: bindings, Object: bind(delegatorName, "system:auth-delegator")},
		{Resource: rbacv1.SchemeGroupVersion.WithResource("rolebindings"), Object: &rbacv1.RoleBinding{
			TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "RoleBinding"},
			ObjectMeta: meta(namespace, authReader), Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "extension-apiserver-authentication-reader"},
		}},
	}
}

// registration makes the apiserver send requests for the metrics API to this server. ca verifies
// the server's certificate.
func registration(ca []byte) api.Object {
	version := v1beta1.SchemeGroupVersion
	return api.Object{
		Resource: apiregistrationv1.SchemeGroupVersion.WithResource("apiservices"),
		Object: &apiregistrationv1.APIService{
			TypeMeta:   metav1.TypeMeta{APIVersion: apiregistrationv1.SchemeGroupVersion.String(), Kind: "APIService"},
			ObjectMeta: meta("", version.Version+"."+version.Group),
			Spec: apiregistrationv1.APIServiceSpec{
				Group: version.Group, Version: version.Version, GroupPriorityMinimum: 100, VersionPriority: 100,
				CABundle: ca,
				Service:  &apiregistrationv1.ServiceReference{Namespace: namespace, Name: account, Port: new(int32(servicePort))},
			},
		},
	}
}

// Remove deletes what the addon made in the cluster.
func Remove(ctx context.Context, access api.Access) error {
	objects, err := api.NewObjects(access.Admin(Name), Name)
	if err != nil {
		return err
	}
	// The names suffice here. The registration goes first, so that no client is led to a Service
	// that is gone.
	return objects.Remove(ctx, append(Config{}.objects(), registration(nil))...)
}
