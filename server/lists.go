package server

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher/delegator"
	"k8s.io/client-go/kubernetes/scheme"
)

const (
	// largeList is the size of stored objects from which a list is limited. Below it even a hundred
	// lists at once do no harm.
	largeList = 16 << 20
	// largeYAML is the size from which YAML is converted object by object: upstream takes 20 MB for
	// a list of that size.
	largeYAML = 256 << 10
	// tableCopies is the memory of a table in multiples of the stored size: it has the objects of
	// its rows as JSON, twice the size of protobuf, in a buffer that grows by doubling.
	// TestListCosts measures it.
	tableCopies = 4
	// datastoreCopies is the memory of a list from the datastore in multiples of the stored size:
	// it has the answer as bytes, and the decoded objects, which are maps of fields for custom
	// resources. TestListCosts measures it.
	datastoreCopies = 10
	// leastListMemory is the minimum memory for lists that are not streamed. It applies where the
	// memory limit is small.
	leastListMemory = 128 << 20
	// listWait bounds how long such a list waits for others, and maxListWaiters how many lists
	// wait. Waiting lists keep their seats in priority and fairness.
	listWait       = 10 * time.Second
	maxListWaiters = 32
)

// inflight returns the numbers of requests that are served at once, reading and mutating. A request
// other than a list costs up to some megabytes: an object of 1.5 MB, decoded, converted and
// encoded. Upstream's 600 are for 2 GB.
func inflight(memory int64) (reading, mutating int64) {
	const perRequest, least, upstream = 2 << 30 / 600, 120, 600
	if memory == 0 {
		memory = upstream * perRequest
	}
	total := min(max(memory/perRequest, least), upstream)
	return total * 2 / 3, total / 3
}

// listBound keeps lists of many large objects from taking all memory. kube-apiserver streams most
// lists object by object. In four cases it holds the whole list in memory, several times: when the
// list is indented, which it does unasked for browsers and curl
// (k8s.io/apiserver/pkg/endpoints/handlers/negotiation), when it is YAML, when it is a table, and
// when it comes from the datastore and not from the cache. Priority and fairness does not help: it
// counts a list as 10 MB at most, and administrators are exempt.
//
// Large lists are not indented, so that they are streamed, and YAML is converted from streamed
// JSON. Lists that cannot be streamed share an amount of memory: they are answered one after
// another, or refused (429).
type listBound struct {
	stats   func(groupResource string) (storage.Stats, error)
	memory  int64
	shared  *semaphore.Weighted // memory, in bytes
	waiters *semaphore.Weighted
	written growth
	next    http.Handler
}

// boundLists puts a listBound between upstream's filters and the API. Call it for the first server
// of the chain, which gets all requests.
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
		b.next.ServeHTTP(w, r) // refuses it
		return
	}
	size, next, media := b.size(info, options.Limit), b.next, negotiate(r, false)
	if text := negotiate(r, true); text.Accepted.MediaType == runtime.ContentTypeYAML && size >= largeYAML {
		accept := mediaType(text, runtime.ContentTypeJSON)
		if media.Accepted.MediaType == runtime.ContentTypeProtobuf {
			accept = mediaType(media, runtime.ContentTypeProtobuf) + "," + accept
		}
		next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serveYAML(w, r, accept, b.next) })
	}
	if size < largeList {
		next.ServeHTTP(w, r)
		return
	}
	if indented(r, query) || media.Pretty {
		r = withoutIndentation(r, query, media)
	}
	copies := copiesOf(media, query, options)
	if copies == 0 {
		next.ServeHTTP(w, r)
		return
	}
	cost := min(size*copies, b.memory)
	if !b.acquire(r.Context(), cost) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "Too many large lists at once, try again later; lists without tables and pages are streamed.", http.StatusTooManyRequests)
		return
	}
	defer b.shared.Release(cost)
	next.ServeHTTP(w, r)
}

// size estimates the stored size of a list's objects. There are no counts by namespace, so a
// namespace counts as the whole cluster.
func (b *listBound) size(info *request.RequestInfo, limit int64) int64 {
	if info.Name != "" {
		return 0 // one object
	}
	written := b.written.of(resourceOf(info))
	stats, err := b.stats(resourceOf(info))
	if err != nil {
		return written // another server serves it, or it is not counted yet
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

// indented returns the same as upstream's isPrettyPrint.
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

func withoutIndentation(r *http.Request, query url.Values, media negotiation.MediaTypeOptions) *http.Request {
	query.Set("pretty", "false")
	changed, address := r.Clone(r.Context()), *r.URL
	address.RawQuery = query.Encode()
	changed.URL = &address
	if media.Pretty {
		changed.Header.Set("Accept", mediaType(media, media.Accepted.MediaType))
	}
	return changed
}

// negotiate returns the media type that upstream answers r with, or the zero value if there is
// none. Custom resources are not available as protobuf: for them noProtobuf is set.
func negotiate(r *http.Request, noProtobuf bool) negotiation.MediaTypeOptions {
	types := slices.Clone(scheme.Codecs.SupportedMediaTypes())
	if noProtobuf {
		types = slices.DeleteFunc(types, func(t runtime.SerializerInfo) bool { return t.MediaType == runtime.ContentTypeProtobuf })
	}
	media, ok := negotiation.NegotiateMediaTypeOptions(r.Header.Get("Accept"), types, transforms{})
	if !ok {
		return negotiation.MediaTypeOptions{}
	}
	return media
}

// transforms allows the transformations that upstream's resources allow.
type transforms struct{}

func (transforms) AllowsMediaTypeTransform(_, subtype string, to *schema.GroupVersionKind) bool {
	switch {
	case to == nil:
		return true
	case to.Group != metav1.GroupName || to.Version != "v1" && to.Version != "v1beta1":
		return false
	case to.Kind == "Table":
		return subtype == "json" || subtype == "yaml"
	}
	return to.Kind == "PartialObjectMetadata" || to.Kind == "PartialObjectMetadataList"
}
func (transforms) AllowsServerVersion(version string) bool { return version == "v1" }
func (transforms) AllowsStreamSchema(string) bool          { return false }

// mediaType returns the name of media in another encoding, not indented.
func mediaType(media negotiation.MediaTypeOptions, encoding string) string {
	if to := media.Convert; to != nil {
		return fmt.Sprintf("%s;as=%s;v=%s;g=%s", encoding, to.Kind, to.Version, to.Group)
	}
	return encoding
}

// copiesOf returns the memory of a list in multiples of the stored size, or 0 if it is written
// object by object from the cache. The list is not indented, and YAML takes as much as JSON. The
// rows of a table hold the objects' metadata, which may be the only large part of them.
func copiesOf(media negotiation.MediaTypeOptions, query url.Values, options metav1.ListOptions) (copies int64) {
	if media.Convert != nil && media.Convert.Kind == "Table" && query.Get("includeObject") != string(metav1.IncludeNone) {
		copies += tableCopies
	}
	result, err := delegator.ShouldDelegateListMeta(&options, delegator.CacheWithoutSnapshots{})
	if err != nil || result.ShouldDelegate {
		copies += datastoreCopies
	}
	return copies
}
