package networkpolicy

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-k8s/mote/addons/api"
)

// fragile fails at its first query and at its first write. A part of that write stays.
type fragile struct {
	asked, written int
}

func (f *fragile) present(context.Context) (bool, error) {
	if f.asked++; f.asked == 1 {
		return false, errors.New("no answer")
	}
	return f.written > 0, nil
}

func (f *fragile) write(context.Context, *ruleset) error {
	if f.written++; f.written == 1 {
		return errors.New("not all is written")
	}
	return nil
}

func (*fragile) remove(context.Context) error { return nil }

func TestFirstRulesAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Controller{cfg: Config{Bridge: "mote0", Address: netip.MustParseAddr(nodeIP)}}
		rules := &fragile{}
		require.NoError(t, c.close(t.Context(), rules))
		require.Equal(t, fragile{asked: 2, written: 2}, *rules)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, c.close(ended, &fragile{}))
	})
}

// TestTrouble checks that `mote status` names policies that are not enforced as written, for as
// long as they exist.
func TestTrouble(t *testing.T) {
	kube := fake.NewClientset()
	c := &Controller{events: api.NewEvents(kube, Name), parsed: make(map[string]parsedPolicy)}
	t.Cleanup(c.events.Close)
	wrong := policyOf(t, `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "10.0.0.0/99"}}]}]}`)
	wrong.Namespace, wrong.Name, wrong.UID = "a", "wrong", "1"
	good := policyOf(t, denyAll)
	good.Namespace, good.Name, good.UID = "a", "good", "2"
	policies := c.policies([]any{wrong, good}, familyOf(netip.MustParseAddr(nodeIP)))
	require.Len(t, policies, 2, "the rest of it and all others are in force")
	require.Equal(t, []string{
		`NetworkPolicy a/wrong: spec.ingress[0], peer 0: ipBlock: "10.0.0.0/99" is not a network; it admits nobody`,
	}, c.Trouble())
	c.policies([]any{good}, familyOf(netip.MustParseAddr(nodeIP)))
	require.Empty(t, c.Trouble())

	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		changed := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.follow(ctx, &fragile{}, func() state { return state{} }, changed)
		}()
		synctest.Wait()
		require.Equal(t, []string{"the rules are not up to date: not all is written"}, c.Trouble())
		time.Sleep(2 * retryAfter)
		synctest.Wait()
		require.Empty(t, c.Trouble())
		cancel()
		<-ended
	})
}
