package networkpolicy

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// fragile fails the first time that it is asked, and the first time that it writes, of which a part stays.
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
