package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"

	"k8s.io/client-go/util/keyutil"

	"github.com/mote-k8s/mote/internal/durable"
)

// Files of the keys of service-account tokens in server/tls.
const (
	tokenKey        = "service-account.key" // signs tokens
	tokenPublicKeys = "service-account.pub" // verify tokens: the signing key's first, then those whose tokens are still valid
)

// loadTokenKeys creates missing keys of service-account tokens. When the signing key was lost or
// removed and is created anew, no other key stays trusted.
func (c *Credentials) loadTokenKeys() error {
	key, err := readKey(c.Path(tokenKey))
	var others []crypto.PublicKey
	switch {
	case errors.Is(err, fs.ErrNotExist):
		key, err = makeKey(c.Path(tokenKey))
		if err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("%w; restore it from a backup, or remove it to make a new one, which invalidates "+
			"the tokens in all pods", err)
	default:
		if others, err = c.oldTokenKeys(key); err != nil {
			return err
		}
	}
	data, err := encodePublic(append([]crypto.PublicKey{key.Public()}, others...))
	if err != nil {
		return err
	}
	return durable.UpdateFile(c.Path(tokenPublicKeys), data, 0o600)
}

// oldTokenKeys returns the keys other than key that verify tokens. A file without key's own public
// key was left by another key and does not count.
func (c *Credentials) oldTokenKeys(key crypto.Signer) ([]crypto.PublicKey, error) {
	data, err := readOptional(c.Path(tokenPublicKeys))
	if err != nil || data == nil {
		return nil, err
	}
	keys, err := keyutil.ParsePublicKeysPEM(data)
	if err != nil {
		return nil, nil // created again from the existing keys
	}
	var old []crypto.PublicKey
	own := false
	for _, k := range keys {
		if samePublic(key.Public(), k) {
			own = true
		} else {
			old = append(old, k)
		}
	}
	if !own {
		return nil, nil
	}
	return old, nil
}

func encodePublic(keys []crypto.PublicKey) ([]byte, error) {
	var out []byte
	for _, key := range keys {
		switch key.(type) {
		case *ecdsa.PublicKey, *rsa.PublicKey:
		default:
			return nil, fmt.Errorf("cannot write a public key of type %T", key)
		}
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return nil, fmt.Errorf("write public key: %w", err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})...)
	}
	return out, nil
}
