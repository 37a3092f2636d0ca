// Package conformance runs upstream's conformance specs against `mote server` on a private host
// without a network, and writes docs/conformance.md. Enter it by scripts/conformance, which builds
// the programs first.
//
// TestConformance starts a registry and a server on the host, runs ginkgo there, and writes the
// run's results as JSON to bin/conformance/results. test/conformance/page makes the page from
// these.
//
// Upstream's images are made from upstream's programs, of the same version's modules, and Debian
// packages. images.go lists the stand-ins among them. The images have upstream's names, and
// containerd finds them through a registry mirror, as on any cluster without internet.
package conformance
