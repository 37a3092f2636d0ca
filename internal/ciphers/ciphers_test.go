package ciphers_test

import (
	"crypto/tls"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/internal/ciphers"
)

// TestSuites lists those of Go's suites that CIS benchmark 1.12 accepts. HTTP/2 needs one of the
// first two (RFC 9113, 9.2.2).
func TestSuites(t *testing.T) {
	require.ElementsMatch(t, []string{
		"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
		"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
		"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
	}, ciphers.Names())
	var named []string
	for _, id := range ciphers.IDs() {
		named = append(named, tls.CipherSuiteName(id))
	}
	require.Equal(t, ciphers.Names(), named)
}
