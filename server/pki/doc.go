// Package pki is what proves who is who in a cluster: authorities, certificates, private keys, the
// keys of service-account tokens, kubeconfigs, and the key that encrypts Secrets, all below
// <data-dir>/server, and the credentials of a node in a directory of their own.
//
// There are two ways in. Credentials is for the server: it makes what is missing, renews what is
// about to end, and says where everything is; Admin and Addons say where the credentials of these
// clients are. Certificates is for verbs: it checks the files, renews them and replaces
// authorities, also beside a server in another process, from which Lock keeps it apart.
//
// It knows nothing of the components that use the files: they reread what has changed.
//
// Invariants: files are replaced by rename after fsync; a private key is on disk before the
// certificate that names it and is kept when that certificate is renewed. Files that only make
// sense together are a plan first, in one file, which is carried out however often it takes
// (plan.go). Hence a crash at any moment leaves files from which the next start goes on.
//
// Methods of Credentials that write need Lock, and one goroutine at a time; those of Certificates
// lock by themselves.
package pki
