package ingress

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// deadlines is a ResponseWriter that records the read deadlines.
type deadlines struct {
	http.ResponseWriter
	set []time.Time
}

func (d *deadlines) SetReadDeadline(at time.Time) error {
	d.set = append(d.set, at)
	return nil
}

// TestPausesInBodiesAreBounded checks that each read has a deadline, and that the connection has
// none afterwards.
func TestPausesInBodiesAreBounded(t *testing.T) {
	d := &deadlines{}
	body := &timedBody{ReadCloser: io.NopCloser(strings.NewReader("body")), control: http.NewResponseController(d), limit: bodyTimeout, sized: true}
	read, err := io.ReadAll(body)
	require.NoError(t, err)
	require.Equal(t, "body", string(read))
	require.Len(t, d.set, 3)
	require.WithinRange(t, d.set[0], time.Now(), time.Now().Add(bodyTimeout))
	require.False(t, d.set[1].Before(d.set[0]))
	require.Zero(t, d.set[2])
}

func TestPanicsAreAnswered(t *testing.T) {
	l := newLab(t)
	l.lead("web", "", says(t, "web"))
	l.add(`{rules: [{host: a.test, http: {paths: [{path: /, pathType: Prefix, backend: ` + toWeb + `}]}}]}`)
	l.apply()
	l.proxy.routes.Load().host("broken.test").addPrefix("/", &route{backend: &backend{}})
	status, _ := l.get("http://broken.test/")
	require.Equal(t, http.StatusInternalServerError, status)
	status, body := l.get("http://a.test/")
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "web", body)
	require.PanicsWithValue(t, http.ErrAbortHandler, func() {
		defer recovered(httptest.NewRecorder())
		panic(http.ErrAbortHandler)
	})
}

// TestImpatientClient checks that a client that leaves before a connection is made does not cause
// the endpoint to be set aside.
func TestImpatientClient(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		cancel()
		return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
	}
	e := &endpoint{address: "127.0.0.1:1"}
	b := &backend{endpoints: []*endpoint{e}, direct: direct{dial}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://a.test/", nil)
	require.NoError(t, err)
	_, err = b.RoundTrip(request)
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, e.aside.Load())
}
