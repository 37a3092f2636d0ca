package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// pollInterval is the time between two checks of a condition that cannot be watched yet. It
	// limits the error of the API-ready times; a refused connection costs some 50 us.
	pollInterval = 5 * time.Millisecond
	// podGrace is the grace period of a measured pod in seconds; its program ends at the first
	// signal.
	podGrace = 1
)

// client is a client of one cluster's API.
type client struct {
	*kubernetes.Clientset
	http *http.Client
}

// waitAPI returns a client as soon as the whole of /readyz is ok.
func waitAPI(ctx context.Context, kubeconfig string) (*client, error) {
	if err := poll(ctx, func() error {
		_, err := os.Stat(kubeconfig)
		return err
	}); err != nil {
		return nil, fmt.Errorf("wait for a kubeconfig: %w", err)
	}
	var c *client
	if err := poll(ctx, func() (err error) {
		c, err = newClient(kubeconfig)
		return err
	}); err != nil {
		return nil, err
	}
	ready := func() error {
		// No retries: client-go waits a second or more before each.
		return c.RESTClient().Get().AbsPath("/readyz").MaxRetries(0).Do(ctx).Error()
	}
	if err := poll(ctx, ready); err != nil {
		return nil, fmt.Errorf("wait for /readyz: %w", err)
	}
	return c, nil
}

func newClient(kubeconfig string) (*client, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS = -1 // no throttling on the measuring side
	config.ContentType, config.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	hc, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	set, err := kubernetes.NewForConfigAndClient(config, hc)
	if err != nil {
		return nil, err
	}
	return &client{Clientset: set, http: hc}, nil
}

func (c *client) RESTClient() rest.Interface { return c.CoreV1().RESTClient() }

// close drops the connections, whose keep-alives would otherwise cost the idle cluster.
func (c *client) close() { net.CloseIdleConnectionsFor(c.http.Transport) }

// poll calls try until it succeeds or ctx ends; then it returns the error of the last try.
func poll(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(pollInterval):
		}
	}
}

// await opens a watch, calls then, and returns when an event satisfies done. It repeats the opening
// until that succeeds. It also reopens a watch that the server ends: the new one starts with the
// current state.
func await(ctx context.Context, open func() (watch.Interface, error), then func() error, done func(watch.Event) bool) (time.Time, error) {
	for {
		var w watch.Interface
		if err := poll(ctx, func() (err error) {
			w, err = open()
			return err
		}); err != nil {
			return time.Time{}, err
		}
		if then != nil {
			if err := then(); err != nil {
				w.Stop()
				return time.Time{}, err
			}
			then = nil
		}
		at, ok := firstEvent(ctx, w, done)
		w.Stop()
		if ok {
			return at, nil
		}
		if ctx.Err() != nil {
			return time.Time{}, context.Cause(ctx)
		}
	}
}

func firstEvent(ctx context.Context, w watch.Interface, done func(watch.Event) bool) (time.Time, bool) {
	for {
		select {
		case <-ctx.Done():
			return time.Time{}, false
		case event, ok := <-w.ResultChan():
			at := time.Now()
			if !ok {
				return at, false
			}
			if done(event) {
				return at, true
			}
		}
	}
}

// waitNode returns when the node is Ready by a heartbeat not older than since.
func (c *client) waitNode(ctx context.Context, since time.Time) (time.Time, error) {
	since = since.Truncate(time.Second)
	open := func() (watch.Interface, error) { return c.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{}) }
	at, err := await(ctx, open, nil, func(event watch.Event) bool {
		node, ok := event.Object.(*corev1.Node)
		if !ok {
			return false
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady {
				return condition.Status == corev1.ConditionTrue && !condition.LastHeartbeatTime.Time.Before(since)
			}
		}
		return false
	})
	if err != nil {
		return at, fmt.Errorf("wait for the node to be Ready: %w", err)
	}
	return at, nil
}

// podTiming has the times when a pod's create call was sent and when a watch showed it Running.
type podTiming struct{ created, running time.Time }

// runPod creates a pod of the bench's image and waits until it runs. It retries the creation while
// the API does not accept pods yet, because the namespace's service account is still being created.
func (c *client) runPod(ctx context.Context, name string) (podTiming, error) {
	var timing podTiming
	pods := c.CoreV1().Pods(metav1.NamespaceDefault)
	create := func() error {
		return poll(ctx, func() error {
			timing.created = time.Now()
			_, err := pods.Create(ctx, podOf(name), metav1.CreateOptions{})
			return err
		})
	}
	var err error
	timing.running, err = await(ctx, c.watchPod(ctx, name), create, func(event watch.Event) bool {
		pod, ok := event.Object.(*corev1.Pod)
		return ok && pod.Status.Phase == corev1.PodRunning
	})
	if err != nil {
		return timing, fmt.Errorf("run pod %s: %w", name, err)
	}
	return timing, nil
}

// deletePod deletes a pod and waits until it is gone.
func (c *client) deletePod(ctx context.Context, name string) error {
	remove := func() error {
		return c.CoreV1().Pods(metav1.NamespaceDefault).Delete(ctx, name, metav1.DeleteOptions{})
	}
	_, err := await(ctx, c.watchPod(ctx, name), remove, func(event watch.Event) bool { return event.Type == watch.Deleted })
	if err != nil {
		return fmt.Errorf("delete pod %s: %w", name, err)
	}
	return nil
}

func (c *client) watchPod(ctx context.Context, name string) func() (watch.Interface, error) {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	return func() (watch.Interface, error) {
		return c.CoreV1().Pods(metav1.NamespaceDefault).Watch(ctx, metav1.ListOptions{FieldSelector: selector})
	}
}

func podOf(name string) *corev1.Pod {
	grace := int64(podGrace)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: appName, Image: appImage, ImagePullPolicy: corev1.PullNever,
			}},
		},
	}
}
