package storage

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/addons/api"
)

// TestSomebodyElsesObject checks that a foreign object is not changed, that users get a report
// where they look for it, and that the process continues.
func TestSomebodyElsesObject(t *testing.T) {
	events := make(chan []byte, 10)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/events"):
			body, _ := io.ReadAll(r.Body)
			events <- body
			w.WriteHeader(http.StatusInternalServerError)
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/serviceaccounts/"+account):
			_, _ = io.WriteString(w, `{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "`+account+`", "namespace": "kube-system"}}`)
		default:
			t.Errorf("it does %s %s", r.Method, r.URL)
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer front.Close()
	dir := t.TempDir()
	p, err := New(Config{
		Access: api.Access{Server: front.URL}, NodeName: "a",
		DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"),
	})
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(p.cfg.RunDir, 0o700))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	require.NoError(t, p.Ready(t.Context()))
	event := <-events
	require.True(t, bytes.Contains(event, []byte("NotOurs")) && bytes.Contains(event, []byte(className)), "%q", event)
	require.Len(t, p.Trouble(), 1)
	require.Contains(t, p.Trouble()[0], "the addon stands by: keep ServiceAccount kube-system/"+account+": it is not mote's; delete it")
	cancel()
	require.NoError(t, <-ended)
}
