package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"aead.dev/minisign"
)

// sign writes path.minisig with the minisign key in the file that MOTE_RELEASE_KEY names, and the
// password in MOTE_RELEASE_PASSWORD if the key is encrypted.
func sign(path string) error {
	keyFile := os.Getenv("MOTE_RELEASE_KEY")
	if path == "" || keyFile == "" {
		return errors.New("cannot sign: name a file, and a minisign secret key in MOTE_RELEASE_KEY")
	}
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return fmt.Errorf("read the key of MOTE_RELEASE_KEY: %w", err)
	}
	key, err := secretKey(text, os.Getenv("MOTE_RELEASE_PASSWORD"))
	if err != nil {
		return fmt.Errorf("open the key %s: %w; the password is read from MOTE_RELEASE_PASSWORD", keyFile, err)
	}
	message, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	name := filepath.Base(path)
	signature := minisign.SignWithComments(key, message, "file:"+name, "signature of "+name+" by a minisign secret key")
	return os.WriteFile(path+".minisig", signature, 0o644)
}

func secretKey(text []byte, password string) (minisign.PrivateKey, error) {
	if minisign.IsEncrypted(text) {
		return minisign.DecryptKey(password, text)
	}
	var key minisign.PrivateKey
	err := key.UnmarshalText(text)
	return key, err
}
