package machine

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// TestStatusWhileTheAPIHangs checks that both requests to the API end with the caller's deadline
// and report that the API does not answer.
func TestStatusWhileTheAPIHangs(t *testing.T) {
	release := make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer api.Close()
	defer close(release)
	client, err := v1.NewForConfig(&rest.Config{Host: api.URL})
	require.NoError(t, err)
	w := &nodeWatch{"n1", time.Now(), client.Nodes(), client.Pods(metav1.NamespaceAll)}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.Equal(t, NodeState{Name: "n1", Reason: "the API does not answer"}, w.state(ctx))
	require.Nil(t, w.summarise(ctx))
	require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded, "the answers came by another end than the deadline")
}
