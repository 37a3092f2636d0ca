// Package server is mote's control plane: its certificates and kubeconfigs, and kube-apiserver,
// kube-controller-manager and kube-scheduler as components of the calling process.
//
// Enter it with Prepare, which validates the configuration and the extra arguments and makes or
// renews every file below <data-dir>/server; then run the components of the ControlPlane that it
// returns. The apiserver must be ready before the other two start, and the controller manager must
// be ready before a kubelet starts in the same process (see ControllerManager).
//
// Upstream keeps feature gates, log settings, metrics and /configz in package variables, so a
// process has one control plane: each component's Run may be called once in the life of a process.
// ControlPlane's methods are safe for concurrent use; Prepare is not.
//
// Certificates is for verbs: it looks at the files, renews them and replaces authorities, also beside a
// server in another process, from which a lock on server/tls keeps it apart.
//
// Invariants: files are replaced by rename after fsync; a private key is on disk before the
// certificate that names it and is kept when that certificate is renewed. Files that only make sense together are
// a plan first, in one file, which is carried out however often it takes (plan.go). Hence a crash at any
// moment leaves files from which the next Prepare goes on.
package server
