package machine

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/addons"
	"github.com/mote-k8s/mote/machine/settings"
)

// TestEveryAddonCanBeDisabled: the settings do not link the addons, so they have names of their own.
func TestEveryAddonCanBeDisabled(t *testing.T) {
	require.Equal(t, addons.Names(), settings.Choices("disable"))
}
