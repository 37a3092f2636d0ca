// Package server is mote's control plane: kube-apiserver, kube-controller-manager and
// kube-scheduler as components of the calling process. Package pki creates their certificates and
// kubeconfigs.
//
// Start with Prepare. It validates the configuration and the extra arguments and creates or renews
// every file below <data-dir>/server. Then run the components of the ControlPlane that it returns.
// The apiserver must be ready before the other two start, and the controller manager must be ready
// before a kubelet starts in the same process (see ControllerManager).
//
// Upstream keeps feature gates, log settings, metrics and /configz in package variables, so a
// process has one control plane: each component's Run may be called once in the life of a process.
// ControlPlane's methods are safe for concurrent use; Prepare is not.
package server
