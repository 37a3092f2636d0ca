package snapshot

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// keyFile writes an identity as age-keygen does and returns its path and its public key.
func keyFile(t *testing.T, hybrid bool) (path, public string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "key.txt")
	var private string
	if hybrid {
		key, err := age.GenerateHybridIdentity()
		require.NoError(t, err)
		private, public = key.String(), key.Recipient().String()
	} else {
		key, err := age.GenerateX25519Identity()
		require.NoError(t, err)
		private, public = key.String(), key.Recipient().String()
	}
	require.NoError(t, os.WriteFile(path, []byte("# public key: "+public+"\n"+private+"\n"), 0o600))
	return path, public
}

func TestEncrypted(t *testing.T) {
	for name, hybrid := range map[string]bool{"classic": false, "post-quantum": true} {
		t.Run(name, func(t *testing.T) {
			from := newMachine(t)
			store := from.open(t)
			put(t, store, "/a", "a word that is nowhere in the clear")
			key, public := keyFile(t, hybrid)
			saved, err := from.folder.Save(t.Context(), "sealed", fromStore(store), from.origin(public), nil)
			require.NoError(t, err)
			require.NoError(t, saved.Err)
			require.Equal(t, []string{public}, saved.Encryption.Recipients)
			require.Equal(t, FormatEncrypted, saved.Format)

			data, err := os.ReadFile(saved.Path)
			require.NoError(t, err)
			secret, err := os.ReadFile(filepath.Join(from.dir, "server", "tls", "server-ca.crt"))
			require.NoError(t, err)
			require.NotContains(t, string(data), string(secret))

			// Without a key the snapshot can be listed and checked. A restore is refused and
			// changes nothing.
			list, err := from.folder.List()
			require.NoError(t, err)
			require.Equal(t, saved, list[0])
			_, err = Verify(t.Context(), saved.Path, Keys{}, nil)
			require.NoError(t, err)
			to := t.TempDir()
			_, err = Restore(t.Context(), saved.Path, to, Keys{}, nil)
			require.ErrorIs(t, err, ErrEncrypted)
			require.NotErrorIs(t, err, ErrDamaged)
			require.ErrorContains(t, err, public)
			other, _ := keyFile(t, hybrid)
			wrong, err := ReadKeys(other)
			require.NoError(t, err)
			_, err = Restore(t.Context(), saved.Path, to, wrong, nil)
			require.ErrorIs(t, err, ErrWrongKey)
			_, _, err = Newest(string(from.folder), "")
			require.ErrorIs(t, err, ErrNone)
			require.ErrorContains(t, err, "--identity")

			keys, err := ReadKeys(key)
			require.NoError(t, err)
			_, err = Verify(t.Context(), saved.Path, keys, nil)
			require.NoError(t, err)
			done, err := Restore(t.Context(), saved.Path, to, keys, nil)
			require.NoError(t, err)
			require.Equal(t, saved.Revision, done.Revision)
			back := &machine{dir: to}
			require.Equal(t, "a word that is nowhere in the clear", get(t, back.open(t), "/a"))
			require.FileExists(t, filepath.Join(to, "server", "tls", "server-ca.crt"))

			// A flipped bit of the encrypted part is found with a key and without.
			flipped := bytes.Clone(data)
			flipped[len(flipped)/2] ^= 1
			damaged := filepath.Join(t.TempDir(), "damaged"+Extension)
			require.NoError(t, os.WriteFile(damaged, flipped, 0o600))
			for _, k := range []Keys{{}, keys} {
				_, err = Verify(t.Context(), damaged, k, nil)
				require.ErrorIs(t, err, ErrDamaged)
			}
		})
	}
}

func TestRecipientsAndKeysAreChecked(t *testing.T) {
	key, public := keyFile(t, false)
	private, err := os.ReadFile(key)
	require.NoError(t, err)
	require.NoError(t, CheckRecipient(public))
	for _, bad := range []string{"", "age1", public[:20], "ssh-ed25519 AAAA", public + "\n" + public} {
		require.Error(t, CheckRecipient(bad), bad)
	}
	secret := string(bytes.Split(private, []byte("\n"))[1])
	err = CheckRecipient(secret)
	require.ErrorContains(t, err, "private key")
	require.NotContains(t, err.Error(), secret)

	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	require.NoError(t, os.WriteFile(broken, []byte(secret[:30]), 0o600))
	_, err = ReadKeys(broken)
	require.ErrorContains(t, err, "age identities")
	require.NotContains(t, err.Error(), secret[:30])
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	_, err = ReadKeys(fifo)
	require.ErrorContains(t, err, "named pipe")
}

// TestSnapshotsThatAreNoFiles checks that a FIFO among the snapshots is listed as unreadable, and
// that no operation blocks on it.
func TestSnapshotsThatAreNoFiles(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	saved := m.save(t, "good", store)
	fifo := filepath.Join(string(m.folder), "fifo"+Extension)
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	list, err := m.folder.List()
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.ErrorContains(t, list[1].Err, "named pipe")
	require.NoError(t, store.Close())
	_, err = Restore(t.Context(), fifo, m.dir, Keys{}, nil)
	require.ErrorContains(t, err, "named pipe")
	_, err = Restore(t.Context(), saved.Path, m.dir, Keys{}, nil)
	require.NoError(t, err)
}
