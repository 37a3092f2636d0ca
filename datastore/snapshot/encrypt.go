package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"

	"github.com/mote-k8s/mote/internal/regular"
)

// An encrypted snapshot holds an age file (https://age-encryption.org/v1) in place of its first
// frame. The manifest stays readable, so snapshots can be listed, pruned and checked for damage
// without the private key. The machine that saves them does not need the key.

// maxIdentities limits the size of the file of private keys.
const maxIdentities = 1 << 20

var (
	// ErrEncrypted is the cause when a snapshot cannot be read without a private key.
	ErrEncrypted = errors.New("encrypted snapshot")
	// ErrWrongKey is the cause when none of the private keys opens a snapshot.
	ErrWrongKey = errors.New("none of the keys opens it")
)

// Encryption describes the encryption of a snapshot in its manifest.
type Encryption struct {
	// Recipients are the public keys that can open the snapshot, as age writes them.
	Recipients []string `json:"recipients"`
	// SHA256 is the sum of the encrypted bytes, in hexadecimal.
	SHA256 string `json:"sha256"`
}

// Keys are private keys that open encrypted snapshots. The zero value opens none.
type Keys struct{ identities []age.Identity }

// ReadKeys reads a file of age identities, one a line, as age-keygen writes it.
func ReadKeys(path string) (Keys, error) {
	data, err := regular.ReadFile(path, maxIdentities)
	if err != nil {
		return Keys{}, fmt.Errorf("read private keys: %w", err)
	}
	identities, err := age.ParseIdentities(bytes.NewReader(data))
	if err != nil {
		// The library's error may quote the line, which is a secret.
		return Keys{}, fmt.Errorf("read private keys: %s is not a file of age identities (AGE-SECRET-KEY-1...), as age-keygen writes it", path)
	}
	return Keys{identities}, nil
}

// CheckRecipient fails unless text is an age public key.
func CheckRecipient(text string) error {
	_, err := parseRecipient(text)
	return err
}

func parseRecipient(text string) (age.Recipient, error) {
	if strings.Contains(strings.ToUpper(text), "AGE-SECRET-KEY") {
		return nil, errors.New("that is a private key; give the public key that belongs to it (age1...)")
	}
	list, err := age.ParseRecipients(strings.NewReader(text))
	if err != nil || len(list) != 1 {
		return nil, fmt.Errorf("%q is not an age public key (age1...), as age-keygen -y prints it", text)
	}
	return list[0], nil
}

// seal encrypts one snapshot while it is written.
type seal struct {
	texts      []string
	recipients []age.Recipient
	// check is a temporary key: the written snapshot is read back with it, and then the key is
	// discarded.
	check age.Identity
}

// newSeal returns nil if there are no recipients: the snapshot is then not encrypted.
func newSeal(recipients []string) (*seal, error) {
	if len(recipients) == 0 {
		return nil, nil
	}
	s := &seal{texts: recipients}
	for _, text := range recipients {
		parsed, err := parseRecipient(text)
		if err != nil {
			return nil, err
		}
		s.recipients = append(s.recipients, parsed)
	}
	return s, nil
}

// writer encrypts the data that is written to it. Each call creates a new key for the check, of the
// same kind as the recipients' keys: age does not mix classic and post-quantum keys.
func (s *seal) writer(w io.Writer) (io.WriteCloser, error) {
	recipients := append([]age.Recipient{}, s.recipients...)
	if _, hybrid := s.recipients[0].(*age.HybridRecipient); hybrid {
		check, err := age.GenerateHybridIdentity()
		if err != nil {
			return nil, err
		}
		s.check, recipients = check, append(recipients, check.Recipient())
	} else {
		check, err := age.GenerateX25519Identity()
		if err != nil {
			return nil, err
		}
		s.check, recipients = check, append(recipients, check.Recipient())
	}
	return age.Encrypt(w, recipients...)
}

// keys returns the keys that decrypt the output of writer, for the check.
func (s *seal) keys() Keys {
	if s == nil {
		return Keys{}
	}
	return Keys{[]age.Identity{s.check}}
}

// plain returns the contents of the first frame as a reader of the compressed archive.
func (s *file) plain(r io.Reader) (io.Reader, error) {
	if s.Encryption == nil {
		return r, nil
	}
	if len(s.keys.identities) == 0 {
		return nil, fmt.Errorf("%w: it is for %s; name the file of the private key with --identity", ErrEncrypted, strings.Join(s.Encryption.Recipients, ", "))
	}
	opened, err := age.Decrypt(r, s.keys.identities...)
	var wrong *age.NoIdentityMatchError
	if errors.As(err, &wrong) {
		return nil, fmt.Errorf("%w; it is for %s", ErrWrongKey, strings.Join(s.Encryption.Recipients, ", "))
	}
	return opened, err
}

// checkSealed compares the encrypted bytes with their sum, which needs no key.
func (s *file) checkSealed(ctx context.Context, progress Progress) error {
	sum := sha256.New()
	all := progressReader{ctx: ctx, r: io.NewSectionReader(s, 0, s.begin), all: s.begin, progress: progress}
	if _, err := io.Copy(sum, &all); err != nil {
		return fmt.Errorf("read snapshot %s: %w", s.Name(), err)
	}
	if hex.EncodeToString(sum.Sum(nil)) != s.Encryption.SHA256 {
		return fmt.Errorf("read snapshot %s: %w: the encrypted part has another sum", s.Name(), ErrDamaged)
	}
	return nil
}
