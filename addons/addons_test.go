package addons

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/addons/api"
	"github.com/mote-k8s/mote/addons/networkpolicy"
	"github.com/mote-k8s/mote/internal/component"
)

func TestDisabledAddonsAreRemovedAndDoNotRun(t *testing.T) {
	units, err := Units(Config{Disabled: Names()})
	require.NoError(t, err)
	require.Len(t, units, 1)
	require.Equal(t, "disabled-addons", units[0].Name())
}

// TestAnotherPodNetworkBringsItsOwnPolicies checks that the remains of a previous run are removed
// as if the addon were disabled.
func TestAnotherPodNetworkBringsItsOwnPolicies(t *testing.T) {
	others := slices.DeleteFunc(Names(), func(name string) bool { return name == networkpolicy.Name })
	units, err := Units(Config{Disabled: others})
	require.NoError(t, err)
	require.Len(t, units, 1)
	require.Equal(t, networkpolicy.Name, units[0].Component.(*removal).addons[slices.Index(Names(), networkpolicy.Name)].name)
}

func TestRemovalIsReadyWhenAllIsRemoved(t *testing.T) {
	removed := 0
	remove := func(context.Context, api.Access) error { removed++; return nil }
	r := &removal{addons: []addon{{name: "a", remove: remove}, {name: "b", remove: remove}}, done: make(chan struct{})}
	group, err := component.NewGroup(component.Unit{Component: r})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- group.Run(ctx) }()
	require.NoError(t, group.Ready(t.Context()))
	require.Equal(t, 2, removed)
	cancel()
	require.NoError(t, <-ended)
}

// TestRemovalTellsWhatHoldsItUp checks that an addon that cannot be removed is reported and does
// not stop the others.
func TestRemovalTellsWhatHoldsItUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tried, removed := 0, 0
		r := &removal{done: make(chan struct{}), addons: []addon{
			{name: "a", remove: func(context.Context, api.Access) error {
				if tried++; tried < 3 {
					return errors.New("no answer")
				}
				return nil
			}},
			{name: "b", remove: func(context.Context, api.Access) error { removed++; return nil }},
		}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		synctest.Wait()
		require.Equal(t, 1, removed)
		now, done := context.WithCancel(t.Context())
		done()
		require.ErrorContains(t, r.Ready(now), "remove addon a: no answer")
		require.NoError(t, r.Ready(t.Context()))
		require.Equal(t, []int{3, 1}, []int{tried, removed})
		cancel()
		require.NoError(t, <-ended)
	})
}
