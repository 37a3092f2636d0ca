// Package cluster gives the tests private hosts and real mote servers on them.
//
// A Host is a set of fresh namespaces (mount, network, PID, UTS, IPC, cgroup) over an overlay of
// the machine's own files. A process in it is root of a machine with a loopback, an empty
// resolv.conf, its own cgroups and nothing else; its changes stay in the overlay. PID 1 of a host
// reads a pipe that the test holds. So when the test ends, also by SIGKILL, the kernel kills
// everything in the host. Any number of hosts run in parallel.
//
//	func TestMain(m *testing.M) { cluster.Main(m, "e2e") }
//
//	h := cluster.NewHost(t, cluster.HostConfig{})
//	s := h.StartServer(t)
//	s.WaitReady(t)
//	h.Kubectl(t, "get", "nodes")
//
// Every wait has a deadline, names what it waits for and checks a condition. When a test has
// failed, the end of each server's log is printed. This package does not import mote's own
// packages: the tests see the program as its users do. Several goroutines of a test may use its
// Host.
package cluster
