// Package pki owns the files that prove identities in a cluster: authorities, certificates, private
// keys, the keys of service-account tokens, kubeconfigs, and the key that encrypts Secrets, all
// below <data-dir>/server, and the credentials of a node in a directory of their own.
//
// It has two entry points. Credentials is for the server: it creates missing files, renews expiring
// ones, and returns all paths; Admin and Addons return the paths of the credentials of these
// clients. Certificates is for verbs: it checks the files, renews them and replaces authorities. It
// works also beside a server in another process, because both use Lock.
//
// The package knows nothing about the components that use the files: they read changed files again.
//
// Invariants: files are replaced by rename after fsync. A private key is on disk before the
// certificate that contains its public half, and is kept when that certificate is renewed. Changes
// of files that belong together are first written as a plan, in one file, which is applied as often
// as necessary (plan.go). So after a crash at any moment the next start can continue from the
// files.
//
// Methods of Credentials that write need Lock, and one goroutine at a time; those of Certificates
// lock by themselves.
package pki
