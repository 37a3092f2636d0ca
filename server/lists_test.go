package server

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/storage"
)

// list requests a list from b; header is name and value.
func list(b *listBound, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	if len(header) == 2 {
		r.Header.Set(header[0], header[1])
	}
	info := &request.RequestInfo{IsResourceRequest: true, Verb: "list", Resource: "configmaps"}
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r.WithContext(request.WithRequestInfo(context.Background(), info)))
	return w
}

func objects(count int64) func(string) (storage.Stats, error) {
	return func(resource string) (storage.Stats, error) {
		if resource != "configmaps" {
			return storage.Stats{}, errors.New("not tracked")
		}
		return storage.Stats{ObjectCount: count, EstimatedAverageObjectSizeBytes: 100_000}, nil
	}
}

func TestLargeListsAreNotIndented(t *testing.T) {
	for _, test := range []struct {
		count          int64
		target, client string
		want           string
	}{
		{5000, "/api/v1/configmaps", "curl/8", "pretty=false"},
		{5000, "/api/v1/configmaps?pretty=1", "kubectl", "pretty=false"},
		{5000, "/api/v1/configmaps", "kubectl", ""},
		{5000, "/api/v1/configmaps?limit=100", "curl/8", "limit=100"},
		{100, "/api/v1/configmaps", "curl/8", ""},
		{5000, "/api/v1/configmaps?pretty=false", "curl/8", "pretty=false"},
	} {
		var got string
		b := newListBound(objects(test.count), 1<<30, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.URL.RawQuery }))
		require.Equal(t, http.StatusOK, list(b, test.target, "User-Agent", test.client).Code)
		require.Equal(t, test.want, got, "%+v", test)
	}
}

// TestListsThatAreNotStreamedShareMemory uses lists that each take all the memory: they are
// answered one at a time, and those that wait too long are refused.
func TestListsThatAreNotStreamedShareMemory(t *testing.T) {
	for what, args := range map[string][]string{
		"tables with objects":   {"/api/v1/configmaps?includeObject=Object", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io"},
		"tables as YAML":        {"/api/v1/configmaps", "Accept", "application/yaml;as=Table;v=v1;g=meta.k8s.io,application/json"},
		"a page of a long list": {"/api/v1/configmaps?limit=500&continue=abc"},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var serving, most, done atomic.Int64
				open := make(chan struct{})
				b := newListBound(objects(5000), leastListMemory, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
					most.Store(max(most.Load(), serving.Add(1)))
					<-open
					serving.Add(-1)
				}))
				codes := make(chan int, 3)
				ask := func() { codes <- list(b, args[0], args[1:]...).Code; done.Add(1) }
				go ask()
				synctest.Wait()
				go ask()
				synctest.Wait()
				require.EqualValues(t, 1, serving.Load())
				require.Equal(t, http.StatusTooManyRequests, <-codes, "the second, after its wait")
				go ask()
				synctest.Wait()
				close(open)
				require.Equal(t, http.StatusOK, <-codes)
				require.Equal(t, http.StatusOK, <-codes, "the third comes after the first")
				require.EqualValues(t, 1, most.Load())
			})
		})
	}
	passed := 0
	b := newListBound(objects(5000), leastListMemory, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed++ }))
	require.True(t, b.shared.TryAcquire(leastListMemory), "no memory is left")
	require.Equal(t, http.StatusOK, list(b, "/api/v1/configmaps?resourceVersion=0", "Accept", "application/json").Code)
	require.Equal(t, http.StatusOK, list(b, "/api/v1/configmaps?resourceVersion=0", "Accept", "application/vnd.kubernetes.protobuf").Code)
	require.Equal(t, http.StatusOK, list(b, "/api/v1/configmaps?resourceVersion=0", "Accept", "application/yaml").Code)
	require.Equal(t, http.StatusOK, list(b, "/api/v1/configmaps?resourceVersion=0&includeObject=None", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Code)
	require.Equal(t, 4, passed, "streamed ones need none")
}

func TestInflightByMemory(t *testing.T) {
	for memory, want := range map[int64][2]int64{0: {400, 200}, 400 << 20: {80, 40}, 1 << 30: {200, 100}, 2 << 30: {400, 200}, 64 << 30: {400, 200}} {
		reading, mutating := inflight(memory)
		require.InDelta(t, want[0], reading, 1, memory)
		require.InDelta(t, want[1], mutating, 1, memory)
	}
}

// TestObjectsThatAreNotCountedYet checks that writes of the last minutes count, and no longer do
// when the counts include them.
func TestObjectsThatAreNotCountedYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got string
		b := newListBound(objects(1), 1<<30, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.URL.RawQuery }))
		write := func(length int64) {
			r := httptest.NewRequest(http.MethodPost, "/api/v1/namespaces/default/configmaps", nil)
			r.ContentLength = length
			info := &request.RequestInfo{IsResourceRequest: true, Verb: "create", Resource: "configmaps"}
			b.ServeHTTP(httptest.NewRecorder(), r.WithContext(request.WithRequestInfo(context.Background(), info)))
		}
		list(b, "/api/v1/configmaps?pretty=true")
		require.Equal(t, "pretty=true", got)
		write(largeList - unknownBody)
		write(-1)
		list(b, "/api/v1/configmaps?pretty=true")
		require.Equal(t, "pretty=false", got)
		time.Sleep(countInterval) // on the clock of synctest: costs no real time
		list(b, "/api/v1/configmaps?pretty=true")
		require.Equal(t, "pretty=false", got, "counts may be that old")
		time.Sleep(countInterval)
		list(b, "/api/v1/configmaps?pretty=true")
		require.Equal(t, "pretty=true", got)
	})
}
