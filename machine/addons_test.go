package machine

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/addons"
	"github.com/mote-k8s/mote/machine/settings"
)

// TestEveryAddonCanBeDisabled compares the names in the settings with the addons: package settings
// does not link the addons, so it has its own list of names.
func TestEveryAddonCanBeDisabled(t *testing.T) {
	require.Equal(t, addons.Names(), settings.Choices("disable"))
}
