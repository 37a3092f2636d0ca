package pki

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiserver "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"sigs.k8s.io/yaml"

	"github.com/mote-k8s/mote/internal/durable"
)

// EnsureEncryption creates the file that configures the encryption of Secrets in the datastore,
// unless it exists: from then on it belongs to the operator, who rotates keys by adding one to it.
// ../README.md explains the choice of secretbox. Identity comes last so that data written before
// can still be read.
func EnsureEncryption(path string) error {
	if _, err := os.Stat(path); err == nil {
		return durable.SetMode(path, 0o600)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return fmt.Errorf("make encryption key: %w", err)
	}
	config := apiserver.EncryptionConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: apiserver.SchemeGroupVersion.String(), Kind: "EncryptionConfiguration"},
		Resources: []apiserver.ResourceConfiguration{{
			Resources: []string{"secrets"},
			Providers: []apiserver.ProviderConfiguration{
				{Secretbox: &apiserver.SecretboxConfiguration{
					Keys: []apiserver.Key{{Name: "key1", Secret: base64.StdEncoding.EncodeToString(key)}},
				}},
				{Identity: &apiserver.IdentityConfiguration{}},
			},
		}},
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return durable.WriteFile(path, data, 0o600)
}
