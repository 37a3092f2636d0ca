// Package api is what every addon shares to work with the cluster: how it reaches the apiserver and as whom,
// how the objects that it owns are kept there and taken away again, and how it tells users what is wrong.
//
// An addon's objects carry the label ManagedBy=mote. Apply writes them by server-side apply and refuses to
// touch an object of the same name without that label, which is somebody else's; Remove deletes only
// objects with it. Everything here is safe for concurrent use.
package api

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// Access is how the addons reach the apiserver. The files may be renewed at any time: clients reread them.
type Access struct {
	// Server is the apiserver's URL, e.g. https://127.0.0.1:6443.
	Server string
	// CAFile verifies it. CertFile and KeyFile are an administrator's.
	CAFile, CertFile, KeyFile string
}

// clientQPS is for an addon's own few requests, which come in a burst at its start. What protects the
// apiserver is its own priority and fairness.
const clientQPS, clientBurst = 50, 100

// Admin is a client's configuration with all rights, for an addon's own objects and events.
func (a Access) Admin(addon string) *rest.Config { return a.As("", addon) }

// As is a client's configuration that impersonates user, so that upstream's code has the rights of its own
// ClusterRole and no more, and the audit log tells who did what.
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

// ServiceAccount is the user name of a service account in kube-system.
func ServiceAccount(name string) string { return "system:serviceaccount:kube-system:" + name }
