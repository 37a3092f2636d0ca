package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// LostKeysError is returned when a start would run on a datastore whose cluster has lost its keys.
// New keys would make it another cluster: no client, node or token would be trusted, and no Secret
// could be read.
type LostKeysError struct {
	// Dir is the directory of the files, and Missing lists their paths below it.
	Dir     string
	Missing []string
	// Sealed is true when the key of the Secrets is missing too: without a backup the Secrets are
	// lost.
	Sealed bool
}

// Error implements error.
func (e *LostKeysError) Error() string {
	return fmt.Sprintf("the datastore holds a cluster, but its keys are missing in %s: %s", e.Dir, strings.Join(e.Missing, ", "))
}

// CheckKeys returns a *LostKeysError if the keys of an existing cluster would have to be created
// anew. A user may remove a single authority or the key of the tokens to replace it; all of them
// are not missing on purpose.
func (c *Credentials) CheckKeys() error {
	lost := &LostKeysError{Dir: c.data.Server()}
	identity := []string{c.Path(ServerAuthority + ".key"), c.Path(ClientAuthority + ".key"), c.Path(tokenKey)}
	missing, err := absent(identity...)
	if err != nil {
		return err
	}
	if len(missing) == len(identity) {
		lost.Missing = missing
	}
	sealed, err := absent(c.data.EncryptionConfig())
	if err != nil {
		return err
	}
	lost.Sealed = len(sealed) > 0
	lost.Missing = append(lost.Missing, sealed...)
	if len(lost.Missing) == 0 {
		return nil
	}
	for i, path := range lost.Missing {
		if lost.Missing[i], err = filepath.Rel(c.data.Server(), path); err != nil {
			return err
		}
	}
	return lost
}

// absent returns the paths at which no file exists.
func absent(paths ...string) ([]string, error) {
	var missing []string
	for _, path := range paths {
		_, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, path)
		} else if err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// Init creates authorities and service-account keys for a cluster that has lost all of them. It
// refuses if any exists, and changes no encryption key.
func (c Certificates) Init() error {
	creds := c.credentials()
	var lost *LostKeysError
	switch err := creds.CheckKeys(); {
	case errors.As(err, &lost) && lost.Sealed:
		return fmt.Errorf("%w; without encryption.yaml the Secrets cannot be read: restore a snapshot or a backup of %s, or remove the cluster with \"mote reset\"",
			err, lost.Dir)
	case err == nil:
		return fmt.Errorf("there are keys in %s already; \"mote certs rotate-ca\" replaces them", creds.Path(""))
	case !errors.As(err, &lost):
		return err
	}
	if err := creds.MakeDirs(); err != nil {
		return err
	}
	release, err := creds.Lock()
	if err != nil {
		return err
	}
	defer release()
	if err := creds.Load(); err != nil {
		return fmt.Errorf("make new keys: %w", err)
	}
	return nil
}

// goneError reports that the directory of the certificates was removed while the server ran.
func goneError(dir string, err error) error {
	return fmt.Errorf("%s is gone (%w): restore it from a snapshot or a backup before the next start; until then the running server keeps its keys in memory",
		dir, err)
}
