package datastore_test

import (
	"flag"
	"net"
	"os/exec"
	"regexp"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/storetest"
)

var etcdProgram = flag.String("etcd", "", "etcd program to run the suite against, as the reference")

// TestSuiteOnEtcd runs the suite against real etcd, to check the suite itself.
func TestSuiteOnEtcd(t *testing.T) {
	if *etcdProgram == "" {
		t.Skip("needs -etcd=PROGRAM")
	}
	out, err := exec.Command(*etcdProgram, "--version").Output()
	require.NoError(t, err)
	var beyond map[string]string
	if version := regexp.MustCompile(`etcd Version: (\d+\.\d+)`).FindSubmatch(out); string(version[1]) < "3.6" {
		beyond = map[string]string{"WatchAtCompaction": "older ones forget a deletion at the compacted revision"}
	}
	storetest.Run(t, openEtcd, beyond)
}

func BenchmarkEtcd(b *testing.B) {
	if *etcdProgram == "" {
		b.Skip("needs -etcd=PROGRAM")
	}
	storetest.Bench(b, benchFolder(b), openEtcd)
}

func openEtcd(t testing.TB, dir string) (string, func()) {
	client, peer := "http://"+freeAddress(t), "http://"+freeAddress(t)
	etcd := exec.Command(*etcdProgram, "--data-dir="+dir, "--log-level=error",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
	require.NoError(t, etcd.Start())
	return client, func() {
		require.NoError(t, etcd.Process.Signal(syscall.SIGTERM))
		_ = etcd.Wait() // the signal ends it
	}
}

func freeAddress(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}
