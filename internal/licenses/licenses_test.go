package licenses

import (
	"bytes"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

func TestWrite(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	text := bytes.Repeat([]byte("Apache License\n"), 1000)
	var out bytes.Buffer
	require.NoError(t, write(&out, fstest.MapFS{embeddedFile: {Data: encoder.EncodeAll(text, nil)}}))
	require.Equal(t, string(text), out.String())

	require.ErrorIs(t, write(&out, fstest.MapFS{}), ErrAbsent)
	require.ErrorContains(t, write(&out, fstest.MapFS{embeddedFile: {Data: []byte("damaged")}}), "embedded licences")
}
