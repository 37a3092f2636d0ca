package machine

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/snapshot"
)

func TestRestoreCommand(t *testing.T) {
	plain := snapshot.Snapshot{}
	plain.Name = "nightly"
	require.Equal(t, "mote datastore snapshot restore nightly", restoreCommand(plain))
	encrypted := plain
	encrypted.Encryption = &snapshot.Encryption{}
	require.Equal(t, "mote datastore snapshot restore nightly --identity FILE", restoreCommand(encrypted))
}
