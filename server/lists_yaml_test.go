package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/client-go/kubernetes/scheme"
)

// trickyStrings are strings that YAML writes in different ways.
var trickyStrings = []string{
	"", " ", "a", "true", "1e3", "0x1f", "null", "~", "- a", "a: b", "# a", "'", `"`, "a\nb\n", "a\n\n\nb", "\n a\n  b", " a\nb ", "\ttab\n\n",
	"a\u2028b", "\x00\x1b", "ü", "=", "2026-12-01", strings.Repeat("word ", 60), strings.Repeat("line of text\n\n", 9), strings.Repeat("  x\n", 5) + "  ",
}

func trickyConfigMaps() *corev1.ConfigMapList {
	l := &corev1.ConfigMapList{TypeMeta: metav1.TypeMeta{Kind: "ConfigMapList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "7", Continue: "abc"}}
	for i, text := range trickyStrings {
		data := map[string]string{"text": text, fmt.Sprintf("key%d", i): text + "\n" + text}
		l.Items = append(l.Items, corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i), Annotations: data}, Data: data, BinaryData: map[string][]byte{"b": []byte(text)}})
	}
	return l
}

// streaming holds the encoders of kube-apiserver.
var streaming = serializer.NewCodecFactory(scheme.Scheme, serializer.WithStreamingCollectionEncodingToJSON())

// answer returns a handler that writes objects with upstream's code, as for any request.
func answer(object runtime.Object, code int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, _ := runtime.SerializerInfoForMediaType(streaming.SupportedMediaTypes(), r.Header.Get("Accept"))
		responsewriters.SerializeObject(info.MediaType, info.Serializer, w, r, code, object)
	})
}

func askYAML(next http.Handler, convert bool) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "/api/v1/configmaps", nil)
	r.Header.Set("Accept", runtime.ContentTypeYAML)
	r.Header.Set("Accept-Encoding", "gzip")
	w := httptest.NewRecorder()
	if convert {
		serveYAML(w, r, runtime.ContentTypeJSON, next)
	} else {
		r.Header.Del("Accept-Encoding")
		next.ServeHTTP(w, r)
	}
	return w
}

// TestYAMLIsAsUpstreamWritesIt compares the output with that of upstream's encoder for the whole
// list.
func TestYAMLIsAsUpstreamWritesIt(t *testing.T) {
	for name, test := range map[string]struct {
		object runtime.Object
		code   int
	}{
		"list":       {trickyConfigMaps(), http.StatusOK},
		"empty list": {&corev1.ConfigMapList{Items: []corev1.ConfigMap{}}, http.StatusOK},
		"no list":    {&corev1.ConfigMapList{}, http.StatusOK},
		"error":      {&metav1.Status{Status: "Failure", Message: "a: b\nc", Code: 403, Details: &metav1.StatusDetails{Name: "x"}}, http.StatusForbidden},
		"custom resources": {&unstructured.UnstructuredList{
			Object: map[string]any{"kind": "XList", "apiVersion": "x.example/v1", "metadata": map[string]any{"resourceVersion": "1"}},
			Items: []unstructured.Unstructured{
				{Object: map[string]any{"kind": "X", "apiVersion": "x.example/v1", "spec": map[string]any{"list": []any{int64(1), 1.5, "a\nb", []any{}, map[string]any{}, nil, []any{[]any{"x"}}}}}},
				{Object: map[string]any{"kind": "X", "apiVersion": "x.example/v1"}},
			},
		}, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			want, got := askYAML(answer(test.object, test.code), false), askYAML(answer(test.object, test.code), true)
			assert.Equal(t, test.code, got.Code)
			assert.Equal(t, want.Header(), got.Header())
			assert.Equal(t, want.Body.String(), got.Body.String())
		})
	}
}

func TestYAMLOfOtherAnswers(t *testing.T) {
	w := askYAML(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "too many", http.StatusTooManyRequests) }), true)
	require.Equal(t, http.StatusTooManyRequests, w.Code)
	require.Equal(t, "too many\n", w.Body.String())

	for what, body := range map[string]string{"cut": `{"items":[{"a":1},`, "no object": `[1]`, "no array": `{"items":{"a":1}}`} {
		require.PanicsWithValue(t, http.ErrAbortHandler, func() {
			askYAML(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", runtime.ContentTypeJSON)
				io.WriteString(w, body)
			}), true)
		}, what)
	}
	require.PanicsWithValue(t, "its own", func() {
		askYAML(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", runtime.ContentTypeJSON)
			io.WriteString(w, `{"items":[`)
			panic("its own")
		}), true)
	})
}

// TestYAMLWhoseClientIsGone checks that the handler's writes fail, so that it can stop early.
func TestYAMLWhoseClientIsGone(t *testing.T) {
	gone := errors.New("connection reset")
	pipe, in := io.Pipe()
	pipe.CloseWithError(gone)
	var last error
	require.PanicsWithValue(t, http.ErrAbortHandler, func() {
		serveYAML(brokenResponse{in}, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/", nil), runtime.ContentTypeJSON,
			http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", runtime.ContentTypeJSON)
				io.WriteString(w, `{"items":[`)
				for range 1000 {
					if _, last = io.WriteString(w, `"`+strings.Repeat("x", 1000)+`",`); last != nil {
						return
					}
				}
			}))
	})
	require.ErrorIs(t, last, gone)
}

type brokenResponse struct{ *io.PipeWriter }

func (brokenResponse) Header() http.Header {
	return http.Header{"Content-Type": {runtime.ContentTypeJSON}}
}
func (brokenResponse) WriteHeader(int) {}

func TestWhoGetsConvertedYAML(t *testing.T) {
	for accept, want := range map[string]string{
		"application/yaml":                        "application/json",
		"application/yaml;q=0.9,application/json": "",
		"application/json":                        "",
		"":                                        "",
		"application/vnd.kubernetes.protobuf":     "",
		"application/vnd.kubernetes.protobuf,application/yaml":                     "application/vnd.kubernetes.protobuf,application/json",
		"application/yaml;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io":         "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
		"application/yaml;as=Nothing;v=v1;g=meta.k8s.io,application/json;pretty=1": "application/json",
	} {
		got := ""
		b := newListBound(objects(5000), 1<<30, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get("Accept") }))
		require.Equal(t, http.StatusOK, list(b, "/api/v1/configmaps?resourceVersion=0", "Accept", accept).Code)
		if want == "" {
			want = accept
		}
		require.Equal(t, want, got, accept)
	}
	got := ""
	b := newListBound(objects(2), 1<<30, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get("Accept") }))
	list(b, "/api/v1/configmaps", "Accept", "application/yaml")
	require.Equal(t, "application/yaml", got, "small lists are upstream's")
}
