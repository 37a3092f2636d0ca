// Package api holds the code that addons share to work with the cluster. It covers the access to
// the apiserver and the identity used there, the objects that an addon owns, and reports of
// problems to users.
//
// An addon's objects carry the label ManagedBy=mote. Apply writes them by server-side apply. It
// refuses to change a foreign object, which has the same name and lacks that label. Remove deletes
// only objects with the label. Everything here is safe for concurrent use.
package api

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// Access defines how addons reach the apiserver. The files may be renewed at any time: clients read
// them again.
type Access struct {
	// Server is the apiserver's URL, e.g. https://127.0.0.1:6443.
	Server string
	// CAFile verifies the server. CertFile and KeyFile are the client certificate and key of an
	// administrator.
	CAFile, CertFile, KeyFile string
}

// clientQPS and clientBurst allow an addon's few requests, which come in a burst at its start. The
// apiserver protects itself by its own priority and fairness.
const clientQPS, clientBurst = 50, 100

// Admin returns a client configuration with all rights, for an addon's own objects and events.
func (a Access) Admin(addon string) *rest.Config { return a.As("", addon) }

// As returns a client configuration that impersonates user. So upstream's code has exactly the
// rights of its own ClusterRole, and the audit log shows which account made a request.
func (a Access) As(user, addon string) *rest.Config {
	return &rest.Config{
		Host:            a.Server,
		TLSClientConfig: rest.TLSClientConfig{CAFile: a.CAFile, CertFile: a.CertFile, KeyFile: a.KeyFile},
		Impersonate:     rest.ImpersonationConfig{UserName: user},
		UserAgent:       "mote-" + addon,
		ContentConfig: rest.ContentConfig{
			ContentType:        runtime.ContentTypeProtobuf,
			AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON,
		},
		QPS: clientQPS, Burst: clientBurst,
	}
}

// ServiceAccount returns the user name of a service account in kube-system.
func ServiceAccount(name string) string { return "system:serviceaccount:kube-system:" + name }
