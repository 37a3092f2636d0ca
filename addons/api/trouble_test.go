package api

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTroubles(t *testing.T) {
	var said Troubles
	require.False(t, said.Note("a", ""), "nothing is nothing new")
	require.True(t, said.Note("b", "is broken"))
	require.False(t, said.Note("b", "is broken"))
	require.True(t, said.Note("a", "is full"))
	require.Equal(t, []string{"a: is full", "b: is broken"}, said.Trouble())
	require.True(t, said.Note("b", ""), "it is well again")
	said.Forget(func(about string) bool { return about == "a" })
	require.Empty(t, said.Trouble())
}
