package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// LostKeysError is the refusal to start on a datastore whose cluster has lost its keys. New ones would
// make another cluster of it: no client, node or token would be trusted, and no Secret be readable.
type LostKeysError struct {
	// Dir is the directory of the files, and Missing are their paths below it.
	Dir     string
	Missing []string
	// Sealed is true when the key of the Secrets is among them: without a backup these are lost.
	Sealed bool
}

// Error implements error.
func (e *LostKeysError) Error() string {
	return fmt.Sprintf("the datastore holds a cluster, but its keys are missing in %s: %s", e.Dir, strings.Join(e.Missing, ", "))
}

// checkKeys refuses to make the keys of a cluster that exists. A single authority or the key of the
// tokens may be removed to have it made again; all of them are not missing on purpose.
func (c *credentials) checkKeys() error {
	lost := &LostKeysError{Dir: c.data.Server()}
	identity := []string{c.tls(serverAuthority + ".key"), c.tls(clientAuthority + ".key"), c.tls(tokenKey)}
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

// absent returns the paths that lead to nothing.
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

// Init makes authorities and service-account keys where a cluster has lost all of them. It refuses
// to touch any that is there, and changes no encryption key.
func (c Certificates) Init() error {
	creds := c.credentials()
	var lost *LostKeysError
	switch err := creds.checkKeys(); {
	case errors.As(err, &lost) && lost.Sealed:
		return fmt.Errorf("%w; without encryption.yaml the Secrets cannot be read: restore a snapshot or a backup of %s, or remove the cluster with \"mote reset\"",
			err, lost.Dir)
	case err == nil:
		return fmt.Errorf("there are keys in %s already; \"mote certs rotate-ca\" replaces them", creds.tls(""))
	case !errors.As(err, &lost):
		return err
	}
	if err := creds.makeDirs(); err != nil {
		return err
	}
	release, err := lockCertificates(creds.tls(""))
	if err != nil {
		return err
	}
	defer release()
	if err := creds.load(); err != nil {
		return fmt.Errorf("make new keys: %w", err)
	}
	return nil
}

// vanished says that the directory of the certificates went away below a running server.
func vanished(dir string, err error) error {
	return fmt.Errorf("%s is gone (%w): restore it from a snapshot or a backup before the next start; until then the running server keeps its keys in memory",
		dir, err)
}

// renewalTrouble is what `mote status` shows while certificates cannot be renewed.
type renewalTrouble struct {
	since time.Time
	text  string
}

func (t *renewalTrouble) lines() []string {
	if t == nil {
		return nil
	}
	return []string{fmt.Sprintf("certificates cannot be renewed since %s: %s", t.since.Format(time.RFC3339), t.text)}
}
