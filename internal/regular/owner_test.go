package regular_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/internal/regular"
)

func TestCheckOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	t.Setenv("SUDO_UID", "1001")
	for _, test := range []struct {
		name          string
		mode          os.FileMode
		uid, gid      int
		dir           os.FileMode
		err, warnings string
	}{
		{name: "root's", mode: 0o644, dir: 0o755},
		{name: "of group root", mode: 0o664, dir: 0o775},
		{name: "of everybody", mode: 0o666, dir: 0o755, err: "mode 0666 lets other users change it; run chmod go-w "},
		{name: "of a group", mode: 0o660, gid: 100, dir: 0o755, err: "mode 0660 lets other users change it"},
		{name: "in a directory of everybody", mode: 0o600, dir: 0o777, err: "can be replaced by other users"},
		{name: "in a directory like /tmp", mode: 0o600, dir: 0o777 | os.ModeSticky},
		{name: "of another user", mode: 0o600, uid: 1000, dir: 0o755, warnings: "belongs to user 1000"},
		{name: "of the caller of sudo", mode: 0o600, uid: 1001, dir: 0o755},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "config.yaml")
			require.NoError(t, os.WriteFile(path, nil, test.mode))
			require.NoError(t, os.Chown(path, test.uid, test.gid))
			require.NoError(t, os.Chmod(path, test.mode))
			require.NoError(t, os.Chmod(dir, test.dir))
			link := filepath.Join(t.TempDir(), "link")
			require.NoError(t, os.Symlink(path, link))
			for _, path := range []string{path, link} {
				warning, err := regular.CheckOwner(path)
				if test.err != "" {
					require.ErrorContains(t, err, test.err)
					continue
				}
				require.NoError(t, err)
				require.Equal(t, test.warnings == "", warning == "", warning)
				require.Contains(t, warning, test.warnings)
			}
		})
	}
	_, err := regular.CheckOwner(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
