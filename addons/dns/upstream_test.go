package dns

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUpstreams(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	ours := netip.MustParseAddr("10.43.0.10")
	none := write("none", "search a.test\n# nameserver 192.0.2.7\nnameserver\nnameserver x\n")
	self := write("self", "nameserver 10.43.0.10\n")
	stub := write("stub", "nameserver 127.0.0.53\nnameserver 10.43.0.10\nnameserver 127.0.0.53\n")
	absent := filepath.Join(dir, "absent")

	for _, test := range []struct {
		files []string
		want  []netip.Addr
	}{
		{nil, nil},
		{[]string{absent, none}, nil},
		{[]string{self}, nil},
		{[]string{none, stub}, []netip.Addr{netip.MustParseAddr("127.0.0.53")}},
		{[]string{write("two", "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"), stub},
			[]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}},
	} {
		require.Equal(t, test.want, upstreams(test.files, ours))
	}
}
