package server

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

// livePeak runs f and returns the most bytes that were reachable at once, above those before.
func livePeak(f func()) int64 {
	defer debug.SetGCPercent(debug.SetGCPercent(5)) // frequent collections, so that garbage is not measured
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	read := func() int64 { metrics.Read(live); return int64(live[0].Value.Uint64()) }
	runtime.GC()
	runtime.GC()
	before, most := read(), int64(0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for ticker := time.NewTicker(time.Millisecond); ; {
			select {
			case <-stop:
				ticker.Stop()
				return
			case <-ticker.C:
				most = max(most, read())
			}
		}
	}()
	f()
	close(stop)
	<-done
	runtime.GC()
	return max(most, read()) - before
}

// densePod returns a pod with many small fields, as most pods have.
func densePod(i int) *corev1.Pod {
	fields := `{"f:status":{"f:conditions":{` + strings.Repeat(`"k:{\"type\":\"Ready\"}":{".":{},"f:lastProbeTime":{},"f:status":{},"f:type":{}},`, 4) + `"f:phase":{}},"f:startTime":{}}}`
	container := corev1.Container{
		Name: "web", Image: "registry.example/web:1", Env: []corev1.EnvVar{{Name: "A", Value: "b"}, {Name: "C", Value: "d"}},
		VolumeMounts: []corev1.VolumeMount{{Name: "token", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true}},
	}
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprint("web-", i), Namespace: "default", Labels: map[string]string{"app": "web", "pod-template-hash": "12345"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(fields)}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{container, container}},
	}
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: "True", LastTransitionTime: metav1.Now()})
	}
	return p
}

// stored returns an object as the datastore has it, and a function that decodes it.
func stored(t *testing.T, object kruntime.Object) (data []byte, read func() kruntime.Object) {
	if u, ok := object.(*unstructured.Unstructured); ok {
		data, err := u.MarshalJSON()
		require.NoError(t, err)
		return data, func() kruntime.Object {
			var decoded unstructured.Unstructured
			require.NoError(t, decoded.UnmarshalJSON(data))
			return &decoded
		}
	}
	info, _ := kruntime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), kruntime.ContentTypeProtobuf)
	var b bytes.Buffer
	require.NoError(t, info.Serializer.Encode(object, &b))
	return b.Bytes(), func() kruntime.Object {
		decoded, _, err := info.Serializer.Decode(bytes.Clone(b.Bytes()), nil, nil)
		require.NoError(t, err)
		return decoded
	}
}

// TestListCosts compares the figures that limit lists with the memory that upstream's encoders and
// decoders take.
func TestListCosts(t *testing.T) {
	large := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"}, Data: map[string]string{"a": strings.Repeat("a line of \"text\"\n", 30_000)}}
	custom, err := kruntime.DefaultUnstructuredConverter.ToUnstructured(densePod(1))
	require.NoError(t, err)
	for name, object := range map[string]kruntime.Object{"large": large, "dense": densePod(1), "custom": &unstructured.Unstructured{Object: custom}} {
		t.Run(name, func(t *testing.T) {
			data, read := stored(t, object)
			const wanted = 1 << 20
			count := wanted/len(data) + 1
			size := int64(count * len(data))
			times := func(bytes int64) float64 { return float64(bytes) / float64(size) }

			var all []kruntime.Object
			decoded := times(livePeak(func() {
				for range count {
					all = append(all, read())
				}
			}))
			require.Less(t, decoded+1, float64(datastoreCopies), "decoded, and the bytes of the answer")

			table := &metav1.Table{TypeMeta: metav1.TypeMeta{Kind: "Table", APIVersion: "meta.k8s.io/v1"}}
			list := &metav1.List{TypeMeta: metav1.TypeMeta{Kind: "List", APIVersion: "v1"}}
			for _, o := range all {
				table.Rows = append(table.Rows, metav1.TableRow{Cells: []any{"x"}, Object: kruntime.RawExtension{Object: o}})
				list.Items = append(list.Items, kruntime.RawExtension{Object: o})
			}
			whole := times(livePeak(func() { discardYAML(answer(table, http.StatusOK)) }))
			streamed := times(livePeak(func() { discardYAML(answer(list, http.StatusOK)) }))
			t.Logf("of %d bytes stored: decoded %.1f, a table %.1f, YAML of a list %.1f", size, decoded, whole, streamed)
			require.LessOrEqual(t, whole, float64(tableCopies)+1)
			// Converted as a whole, lists of objects with many fields take 50 to 80 times their
			// size.
			require.Less(t, streamed*float64(size), float64(12*len(data)+4<<20), "an object at a time, and buffers")
		})
	}
}

func discardYAML(next http.Handler) {
	serveYAML(discardedResponse{http.Header{}}, httptest.NewRequest(http.MethodGet, "/", nil), kruntime.ContentTypeJSON, next)
}

type discardedResponse struct{ header http.Header }

func (d discardedResponse) Header() http.Header          { return d.header }
func (discardedResponse) WriteHeader(int)                {}
func (discardedResponse) Write(data []byte) (int, error) { return len(data), nil }
