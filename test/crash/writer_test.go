package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-k8s/mote/test/cluster"
)

// writers is the number of concurrent clients, so that some requests are always under way at a
// kill.
const writers = 8

// record has the writes that the servers have acknowledged. It lives in the test, outside all
// victims.
type record struct {
	mu       sync.Mutex
	next     int             // number of the next object; never reused
	values   map[string]int  // name -> last acknowledged value; values only grow
	doubtful map[string]bool // a delete was under way when the server died
	revision uint64          // greatest resource version that was acknowledged
}

func newRecord() *record {
	return &record{values: map[string]int{}, doubtful: map[string]bool{}}
}

// load writes until ctx ends. An error gives no information: the request may or may not have been
// executed.
func (r *record) load(ctx context.Context, client kubernetes.Interface, seed uint64) {
	var group sync.WaitGroup
	for i := range writers {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		group.Go(func() {
			for ctx.Err() == nil {
				r.write(ctx, client, random)
			}
		})
	}
	group.Wait()
}

// write creates an object, updates it a few times and sometimes deletes it again.
func (r *record) write(ctx context.Context, client kubernetes.Interface, random *rand.Rand) {
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	object := &corev1.ConfigMap{Data: map[string]string{
		"value": "0", "ballast": strings.Repeat("x", random.IntN(4000)),
	}}
	r.mu.Lock()
	object.Name = fmt.Sprintf("crash-%06d", r.next)
	r.next++
	r.mu.Unlock()

	created, err := maps.Create(ctx, object, metav1.CreateOptions{})
	if err != nil {
		return
	}
	r.acknowledge(created, 0)
	for value := range random.IntN(3) {
		created.Data["value"] = strconv.Itoa(value + 1)
		if created, err = maps.Update(ctx, created, metav1.UpdateOptions{}); err != nil {
			return
		}
		r.acknowledge(created, value+1)
	}
	if random.IntN(4) > 0 {
		return
	}
	r.mu.Lock()
	r.doubtful[object.Name] = true
	r.mu.Unlock()
	if err := maps.Delete(ctx, object.Name, metav1.DeleteOptions{}); err == nil {
		r.mu.Lock()
		delete(r.values, object.Name)
		delete(r.doubtful, object.Name)
		r.values[object.Name] = deleted
		r.mu.Unlock()
	}
}

// deleted is the value of an object whose deletion was acknowledged.
const deleted = -1

func (r *record) acknowledge(object *corev1.ConfigMap, value int) {
	revision, err := strconv.ParseUint(object.ResourceVersion, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("resource version %q: %v", object.ResourceVersion, err))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.values[object.Name] = value
	r.revision = max(r.revision, revision)
}

// check compares the server's current objects with the acknowledged writes. No load may run.
func (r *record) check(t *testing.T, s *cluster.Server) {
	t.Helper()
	client, err := s.Client()
	if err != nil {
		t.Fatal(err)
	}
	list, err := client.CoreV1().ConfigMaps(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatalf("list ConfigMaps: %v", err)
	}
	held := map[string]int{}
	for _, object := range list.Items {
		// An update whose answer was lost may have been executed: a greater value is right too.
		if held[object.Name], err = strconv.Atoi(object.Data["value"]); err != nil && strings.HasPrefix(object.Name, "crash-") {
			t.Errorf("ConfigMap %s holds value %q", object.Name, object.Data["value"])
		}
	}
	for name, value := range r.values {
		got, there := held[name]
		switch {
		case value == deleted && there:
			t.Errorf("ConfigMap %s is back; its deletion was acknowledged", name)
		case value == deleted:
		case !there && r.doubtful[name]:
			r.values[name] = deleted
		case !there:
			t.Errorf("ConfigMap %s is lost; it was acknowledged with value %d", name, value)
		case got < value:
			t.Errorf("ConfigMap %s has value %d; %d was acknowledged", name, got, value)
		}
	}
	if revision, err := strconv.ParseUint(list.ResourceVersion, 10, 64); err != nil || revision < r.revision {
		t.Errorf("the server is at revision %s, but has acknowledged %d: %v", list.ResourceVersion, r.revision, err)
	}
	clear(r.doubtful)
	t.Logf("%d objects held, %d acknowledged, revision %s", len(held), len(r.values), list.ResourceVersion)
	r.prune(t, client)
}

// pruneAbove keeps lists small, so that late rounds cost the same as early ones.
const pruneAbove = 4000

func (r *record) prune(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	if len(r.values) < pruneAbove {
		return
	}
	err := client.CoreV1().ConfigMaps(metav1.NamespaceDefault).
		DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatalf("delete the ConfigMaps: %v", err)
	}
	clear(r.values)
	clear(r.doubtful)
}
