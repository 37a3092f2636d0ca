package server

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher/delegator"
)

const (
	// largeList is the size of stored objects from which a list is bounded. Below it even a hundred at once do no harm.
	largeList = 16 << 20
	// listCopies is how often the objects of a list that is not streamed are in memory at once: as JSON, indented or as
	// YAML, and the buffers that both grow in. 500 MB took 1.8 GB.
	listCopies = 4
	// leastListMemory is for lists that are not streamed where the memory limit is small.
	leastListMemory = 128 << 20
	// listWait is how long such a list waits for others, and maxListWaiters how many do. Waiting lists keep their seats
	// in priority and fairness.
	listWait       = 10 * time.Second
	maxListWaiters = 32
)

// inflight is how many requests are served at once, mutating or not. A request that is no list costs up to some
// megabytes: an object of 1.5 MB, decoded, converted and encoded. Upstream's 600 are for 2 GB.
func inflight(memory int64) (reading, mutating int64) {
	const perRequest, least, upstream = 2 << 30 / 600, 120, 600
	if memory == 0 {
		memory = upstream * perRequest
	}
	total := min(max(memory/perRequest, least), upstream)
	return total * 2 / 3, total / 3
}

// listBound keeps lists of many large objects from taking all memory. kube-apiserver streams most lists object by
// object. It holds all of a list, several times, when the list is to be indented, which it does for browsers and curl
// without being asked (k8s.io/apiserver/pkg/endpoints/handlers/negotiation), when it is YAML, and when it comes
// from the datastore and not from the cache. Priority and fairness does not help: it counts a list as 10 MB at most, and
// administrators are exempt.
//
// Large lists are not indented, so that they are streamed. Those that cannot be streamed share an amount of memory:
// they are answered one after another, or refused (429).
type listBound struct {
	stats   func(groupResource string) (storage.Stats, error)
	memory  int64
	shared  *semaphore.Weighted // memory, in bytes
	waiters *semaphore.Weighted
	written growth
	next    http.Handler
}

// boundLists puts a listBound between upstream's filters and the API. It is for the first server of the chain, through which
// all requests go.
func boundLists(config *genericapiserver.Config, memory int64) {
	memory = max(memory/4, leastListMemory)
	build, tracker := config.BuildHandlerChainFunc, config.StorageObjectCountTracker
	config.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return build(newListBound(tracker.Get, memory, api), c)
	}
}

func newListBound(stats func(string) (storage.Stats, error), memory int64, next http.Handler) *listBound {
	return &listBound{
		stats: stats, memory: memory, shared: semaphore.NewWeighted(memory), waiters: semaphore.NewWeighted(maxListWaiters), next: next,
	}
}

// ServeHTTP implements http.Handler.
func (b *listBound) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	info, ok := request.RequestInfoFrom(r.Context())
	if !ok || !info.IsResourceRequest || info.Verb != "list" {
		if ok && slices.Contains([]string{"create", "update", "patch"}, info.Verb) && info.Subresource == "" {
			b.written.add(resourceOf(info), r.ContentLength)
		}
		b.next.ServeHTTP(w, r)
		return
	}
	query := r.URL.Query()
	options := metav1.ListOptions{}
	if metav1.Convert_url_Values_To_v1_ListOptions(&query, &options, nil) != nil {
		b.next.ServeHTTP(w, r) // which refuses it
		return
	}
	size := b.size(info, options.Limit)
	if size < largeList {
		b.next.ServeHTTP(w, r)
		return
	}
	if indented(r, query) {
		r = withoutIndentation(r, query)
	}
	if streamed(r, query, options) {
		b.next.ServeHTTP(w, r)
		return
	}
	cost := min(size*listCopies, b.memory)
	if !b.acquire(r.Context(), cost) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "Too many large lists at once, try again later; ask for JSON or protobuf, which are streamed.", http.StatusTooManyRequests)
		return
	}
	defer b.shared.Release(cost)
	b.next.ServeHTTP(w, r)
}

// size estimates how large the objects of a list are as they are stored. Nobody counts them by namespace, so a namespace
// is taken for the whole cluster.
func (b *listBound) size(info *request.RequestInfo, limit int64) int64 {
	if info.Name != "" {
		return 0 // one object
	}
	written := b.written.of(resourceOf(info))
	stats, err := b.stats(resourceOf(info))
	if err != nil {
		return written // served elsewhere, or not counted yet
	}
	count := stats.ObjectCount
	if limit > 0 {
		count = min(count, limit)
	}
	return count*stats.EstimatedAverageObjectSizeBytes + written
}

func resourceOf(info *request.RequestInfo) string {
	return (&schema.GroupResource{Group: info.APIGroup, Resource: info.Resource}).String()
}

func (b *listBound) acquire(ctx context.Context, cost int64) bool {
	if b.shared.TryAcquire(cost) {
		return true
	}
	if !b.waiters.TryAcquire(1) {
		return false
	}
	defer b.waiters.Release(1)
	ctx, cancel := context.WithTimeout(ctx, listWait)
	defer cancel()
	return b.shared.Acquire(ctx, cost) == nil
}

// indented says what upstream's isPrettyPrint does.
func indented(r *http.Request, query url.Values) bool {
	if asked := query.Get("pretty"); asked != "" {
		pretty, _ := strconv.ParseBool(asked)
		return pretty
	}
	for _, tool := range []string{"curl", "Wget", "Mozilla/5.0"} {
		if strings.HasPrefix(r.UserAgent(), tool) {
			return true
		}
	}
	return false
}

func withoutIndentation(r *http.Request, query url.Values) *http.Request {
	query.Set("pretty", "false")
	changed, address := *r, *r.URL
	address.RawQuery = query.Encode()
	changed.URL = &address
	return &changed
}

// streamed says whether a list that is not indented is written object by object, from the cache.
func streamed(r *http.Request, query url.Values, options metav1.ListOptions) bool {
	for _, accept := range r.Header.Values("Accept") {
		if strings.Contains(accept, "yaml") {
			return false
		}
	}
	if query.Get("includeObject") == "Object" { // rows of a table with whole objects
		return false
	}
	result, err := delegator.ShouldDelegateListMeta(&options, delegator.CacheWithoutSnapshots{})
	return err == nil && !result.ShouldDelegate
}
