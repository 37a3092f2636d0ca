package dns

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/fsnotify/fsnotify"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-k8s/mote/addons/api"
)

// running counts the goroutines whose stack contains a call.
func running(call string) int {
	stacks := make([]byte, 4<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), call)
}

// testRefusedReload checks that the last good Corefile stays active, and that nothing of the
// refused one keeps running.
func testRefusedReload(t *testing.T, s *Server) {
	dnsserver.Directives = append(directives(), "mote_panics")
	plugin.Register("mote_panics", func(c *caddy.Controller) error {
		dnsserver.GetConfig(c).AddPlugin(func(plugin.Handler) plugin.Handler {
			return plugin.HandlerFunc(func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) { panic("on purpose") })
		})
		return nil
	})
	const watching = "plugin/kubernetes.(*dnsControl).Run("
	const corefile = ".:53 {\n kubernetes cluster.local {\n  startup_timeout 1ms\n }\n loop\n}\n"
	require.NoError(t, s.start(sources{corefile: corefile}))
	good := s.instance
	require.Eventually(t, func() bool { return running(watching) == 1 }, 10*time.Second, time.Millisecond)
	looks := func() int { return running("dns.(*loop).watch(") }

	s.events = api.NewEvents(fake.NewClientset(), Name)
	t.Cleanup(s.events.Close)
	require.NoError(t, s.load(sources{corefile: ".:53 {\n errors\n whatever\n}\n"}))
	require.Equal(t, []string{
		"ConfigMap kube-system/coredns: Corefile:3 - Error during parsing: Unknown directive 'whatever'; the last good Corefile stays in force",
	}, s.Trouble())

	for why, refused := range map[string]string{
		"an address that is not here": corefile + "a.test:5300 {\n bind 192.0.2.77\n}\n",
		"a word that is no option":    "a.test:53 {\n kubernetes a.test\n hosts {\n  192.0.2.1 x.test\n }\n forward . nowhere!\n}\n" + corefile,
	} {
		require.Error(t, s.start(sources{corefile: refused}), why)
		require.Same(t, good, s.instance)
		require.Eventually(t, func() bool {
			return running(watching) == 1 && looks() <= 1 && running("hosts.periodicHostsUpdate") == 0
		}, 10*time.Second, time.Millisecond, why)
	}
	require.NoError(t, s.load(sources{corefile: corefile}))
	require.Empty(t, s.Trouble())

	// A query that panics is answered, and so is the next one. A pod must not be able to end the
	// cluster.
	require.NoError(t, s.load(sources{corefile: ".:53 {\n debug\n template IN ANY panic.test {\n  rcode NOERROR\n }\n  mote_panics\n}\n"}))
	for range 3 {
		require.Equal(t, dns.RcodeServerFailure, ask(t, serverPort, "panics.test.", dns.TypeA).Rcode)
		require.Equal(t, dns.RcodeSuccess, ask(t, serverPort, "a.panic.test.", dns.TypeA).Rcode)
	}
	s.stop()
	require.Eventually(t, func() bool { return running(watching)+looks() == 0 }, 10*time.Second, time.Millisecond)
}

// TestLostFileEvents checks that the files are read again after lost events, and that later events
// still arrive.
func TestLostFileEvents(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "resolv.conf")
	s := &Server{cfg: Config{ResolvConfs: []string{file}}}
	watcher, err := fsnotify.NewWatcher()
	require.NoError(t, err)
	require.NoError(t, watcher.Add(dir))
	changes, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		s.followFiles(watcher, func() {
			select {
			case changes <- struct{}{}:
			case <-t.Context().Done():
			}
		})
	}()
	watcher.Errors <- fsnotify.ErrEventOverflow
	<-changes
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	<-changes
	require.NoError(t, watcher.Close())
	go func() {
		for range changes { // of the same file
		}
	}()
	<-ended
	close(changes)
}
