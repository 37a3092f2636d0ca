package networkpolicy

import (
	"net/netip"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestNextLifeLetsNothingThrough checks that the rules of a previous run are taken over while
// packets flow.
func TestNextLifeLetsNothingThrough(t *testing.T) {
	for name, open := range map[string]func() (enforcer, error){
		"nftables": func() (enforcer, error) { return openNFTables() },
		"iptables": func() (enforcer, error) { return openIPTables(familyOf(netip.MustParseAddr(nodeIP))) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, false, "web", "client")
			want := compile(testCluster(denyWeb))
			var written chan error
			live := func() {
				written = make(chan error, 1)
				go func() {
					runtime.LockOSThread() // the thread ends with the goroutine
					err := unix.Setns(l.node.ns, unix.CLONE_NEWNET)
					var rules enforcer
					if err == nil {
						rules, err = open()
					}
					if err == nil {
						err = rules.write(t.Context(), want)
					}
					written <- err
				}()
			}
			live()
			require.NoError(t, <-written)
			l.reach(t, "client web tcp 80 no")
			for range 5 {
				live()
				for done := false; !done; {
					select {
					case err := <-written:
						require.NoError(t, err)
						done = true
					default:
					}
					l.reach(t, "client web tcp 80 no")
				}
				l.reach(t, "web client tcp 80 yes")
			}
		})
	}
}

// TestChainsAloneAreNoRules checks that a run that ended before it led packets to its chains has
// left no active rules.
func TestChainsAloneAreNoRules(t *testing.T) {
	l := newLab(t, false, "web", "client")
	l.in(l.node, func() {
		rules, err := openIPTables(familyOf(netip.MustParseAddr(nodeIP)))
		require.NoError(t, err)
		require.NoError(t, rules.judge.write(t.Context(), droppingChains(&ruleset{bridge: bridge}), nil))
		present, err := rules.present(t.Context())
		require.NoError(t, err)
		require.False(t, present)
		require.NoError(t, rules.write(t.Context(), compile(testCluster(denyWeb))))
		present, err = rules.present(t.Context())
		require.NoError(t, err)
		require.True(t, present)
	})
	l.reach(t, "client web tcp 80 no")
}
