// Package cluster gives the tests private hosts and real mote servers on them.
//
// A Host is a set of fresh namespaces (mount, network, PID, UTS, IPC, cgroup) over an overlay of
// the machine's own files: a process in it is root of a machine with a loopback, an empty
// resolv.conf, its own cgroups and nothing else; what it changes stays in the overlay. Its PID 1 reads a
// pipe that the test holds, so when the test ends, also by SIGKILL, the kernel kills everything
// in it. Any number of hosts run side by side.
//
//	func TestMain(m *testing.M) { cluster.Main(m, "e2e") }
//
//	h := cluster.NewHost(t, cluster.HostConfig{})
//	s := h.StartServer(t)
//	s.WaitReady(t)
//	h.Kubectl(t, "get", "nodes")
//
// Every wait has a deadline, names what it waits for and looks at a condition. When a test has failed the end
// of each server's log is printed. Nothing here imports mote's own packages: the tests see the
// program as its users do. A Host may be used by several goroutines of its test.
package cluster
