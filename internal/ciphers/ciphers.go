// Package ciphers lists the TLS 1.2 cipher suites that every port of the cluster accepts.
//
// They have forward secrecy (ECDHE) and authenticated encryption (AES-GCM, ChaCha20-Poly1305). Go's
// own default also accepts two suites of AES in CBC mode, which CIS benchmark controls 1.2.29 and
// 4.2.12 exclude. Every TLS 1.2 client of the last ten years supports a suite of the list. TLS 1.3
// is unaffected: all of its suites have these properties, and Go offers no choice.
package ciphers

import (
	"crypto/tls"
	"strings"
)

// IDs returns the suites for tls.Config.CipherSuites. Go orders them itself.
func IDs() []uint16 {
	var ids []uint16
	for _, suite := range suites() {
		ids = append(ids, suite.ID)
	}
	return ids
}

// Names returns the suites in the spelling of upstream's flags and configuration files.
func Names() []string {
	var names []string
	for _, suite := range suites() {
		names = append(names, suite.Name)
	}
	return names
}

func suites() []*tls.CipherSuite {
	var strong []*tls.CipherSuite
	for _, suite := range tls.CipherSuites() { // the suites without known weaknesses
		authenticated := strings.Contains(suite.Name, "_GCM_") || strings.Contains(suite.Name, "_CHACHA20_POLY1305_")
		if strings.HasPrefix(suite.Name, "TLS_ECDHE_") && authenticated {
			strong = append(strong, suite)
		}
	}
	return strong
}
