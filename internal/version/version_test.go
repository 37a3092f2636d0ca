package version

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRuncIsWhatThePayloadIsBuiltFrom(t *testing.T) {
	mod, err := os.ReadFile("../../agent/payload/src/go.mod")
	require.NoError(t, err)
	require.Contains(t, string(mod), "github.com/opencontainers/runc "+runc)
}
