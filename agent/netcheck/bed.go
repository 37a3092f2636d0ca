package netcheck

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mote-k8s/mote/agent"
)

const (
	// Namespace is a namespace of the check's own, so that the policies, quotas and defaults of
	// other namespaces do not affect it.
	Namespace = "mote-check-net"
	// managedBy with the value mote distinguishes mote's namespace from a foreign one of the same
	// name.
	managedBy, mote = "app.kubernetes.io/managed-by", "mote"
	// serverPod is behind the Service. clientPod connects.
	serverPod, clientPod = "server", "client"
	// port is the port that the check serves in the server pod's network.
	port = 8080

	// podTimeout bounds the start of a pod whose image is there. It takes a second if nothing else
	// starts.
	podTimeout = 30 * time.Second
	// podLife is the time after which the pods end if their check was killed.
	podLife = 5 * time.Minute
	// removeTimeout bounds the removal of the namespace. Its controller waits 5 s before it begins.
	removeTimeout = time.Minute
	pollInterval  = 100 * time.Millisecond
)

// bed holds everything that the probes need in the cluster.
type bed struct {
	Config
	client kubernetes.Interface

	nodeIP  string
	service *corev1.Service
	pods    map[string]pod
	// listener accepts connections in the server pod's network.
	listener net.Listener
}

// pod holds the address of a pod and the path of its network namespace.
type pod struct{ address, network string }

// make starts the pods and listens in one of them.
func (b *bed) make(ctx context.Context) error {
	if err := b.create(ctx); err != nil {
		return err
	}
	node, err := b.client.CoreV1().Nodes().Get(ctx, b.NodeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("look at node %s: %w", b.NodeName, err)
	}
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			b.nodeIP = a.Address
		}
	}
	b.pods = map[string]pod{}
	for _, name := range []string{serverPod, clientPod} {
		if b.pods[name], err = b.await(ctx, name); err != nil {
			return err
		}
	}
	return within(b.pods[serverPod].network, func() error {
		b.listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
}

func (b *bed) create(ctx context.Context) error {
	core := b.client.CoreV1()
	_, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: Namespace,
		// The cluster's default policy may forbid such pods.
		Labels: map[string]string{"pod-security.kubernetes.io/enforce": "privileged", managedBy: mote},
	}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make namespace %s: %w", Namespace, err)
	}
	// With this account, the pods need not wait until a controller makes the default one.
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "check"}}
	if _, err := core.ServiceAccounts(Namespace).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("make service account %s/%s: %w", Namespace, account.Name, err)
	}
	for _, name := range []string{serverPod, clientPod} {
		if _, err := core.Pods(Namespace).Create(ctx, b.podNamed(name, account.Name), metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("make pod %s/%s: %w", Namespace, name, err)
		}
	}
	b.service, err = core.Services(Namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: serverPod},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": serverPod},
			Ports: []corev1.ServicePort{{Port: port, TargetPort: intstr.FromInt32(port)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make Service %s/%s: %w", Namespace, serverPod, err)
	}
	return nil
}

// podNamed returns a pod that starts on this node, whatever keeps other pods off it.
func (b *bed) podNamed(name, account string) *corev1.Pod {
	no, life, grace := false, int64(podLife.Seconds()), int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName:           b.NodeName,
			Tolerations:        []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			ServiceAccountName: account, AutomountServiceAccountToken: &no,
			RestartPolicy: corev1.RestartPolicyNever, EnableServiceLinks: &no,
			ActiveDeadlineSeconds: &life, TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{Name: "pause", Image: agent.PauseImage, ImagePullPolicy: corev1.PullNever}},
		},
	}
}

// await waits until a pod runs. Its error gives the reason why the pod does not run.
func (b *bed) await(ctx context.Context, name string) (pod, error) {
	var found *corev1.Pod
	err := wait.PollUntilContextTimeout(ctx, pollInterval, podTimeout, true, func(ctx context.Context) (bool, error) {
		var err error
		found, err = b.client.CoreV1().Pods(Namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil && found.Status.Phase == corev1.PodFailed {
			return false, fmt.Errorf("it has failed: %s", whyFailed(found.Status)) // it is not started again
		}
		return err == nil && found.Status.Phase == corev1.PodRunning && found.Status.PodIP != "", err
	})
	if wait.Interrupted(err) {
		return pod{}, fmt.Errorf("pod %s/%s does not run after %s: %s", Namespace, name, podTimeout, b.lastWarning(context.WithoutCancel(ctx), name))
	}
	if err != nil {
		return pod{}, fmt.Errorf("wait for pod %s/%s: %w", Namespace, name, err)
	}
	network, err := networkOf(ctx, b.CRISocket, string(found.UID))
	return pod{found.Status.PodIP, network}, err
}

// whyFailed returns the kubelet's reason for not running a pod, or how its container ended.
func whyFailed(s corev1.PodStatus) string {
	for _, c := range s.ContainerStatuses {
		if t := c.State.Terminated; t != nil && s.Reason == "" {
			return fmt.Sprintf("%s: its process ended with %d", t.Reason, t.ExitCode)
		}
	}
	return s.Reason + ": " + s.Message
}

func (b *bed) lastWarning(ctx context.Context, name string) string {
	events, err := b.client.CoreV1().Events(Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.name": name, "type": corev1.EventTypeWarning}.String(),
	})
	if err != nil || len(events.Items) == 0 {
		return "no event says why"
	}
	return events.Items[len(events.Items)-1].Message
}

// networkOf returns the path of a pod's network namespace, which it finds by the pod's first
// process.
func networkOf(ctx context.Context, socket, uid string) (string, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", fmt.Errorf("reach containerd on %s: %w", socket, err)
	}
	defer conn.Close()
	cri := runtimeapi.NewRuntimeServiceClient(conn)
	list, err := cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		LabelSelector: map[string]string{"io.kubernetes.pod.uid": uid},
		State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil {
		return "", fmt.Errorf("list pods of containerd: %w", err)
	}
	if len(list.Items) == 0 {
		return "", fmt.Errorf("containerd knows no pod %s", uid)
	}
	status, err := cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: list.Items[0].Id, Verbose: true})
	if err != nil {
		return "", fmt.Errorf("ask containerd for pod %s: %w", uid, err)
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(status.Info["info"]), &info); err != nil || info.PID == 0 {
		return "", fmt.Errorf("containerd names no process of pod %s: %w", uid, err)
	}
	return fmt.Sprintf("/proc/%d/ns/net", info.PID), nil
}

// within calls f in a network namespace, "" for the node's. f must connect and listen on its own
// goroutine.
func within(network string, f func() error) error {
	if network == "" {
		return f()
	}
	if err := ns.WithNetNSPath(network, func(ns.NetNS) error { return f() }); err != nil {
		return fmt.Errorf("in the network of a pod: %w", err)
	}
	return nil
}

// serve sends back all data that it receives, until stop is called.
func (b *bed) serve() (stop func()) {
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := b.listener.Accept()
			if err != nil {
				return // closed
			}
			all.Go(func() {
				defer conn.Close()
				if conn.SetDeadline(time.Now().Add(attemptTimeout)) == nil {
					_, _ = io.Copy(conn, conn) // the client notices missing data
				}
			})
		}
	})
	return func() {
		b.listener.Close()
		all.Wait()
	}
}

// remove removes everything that this check, or one that was killed, has made. If there is nothing
// to remove, it makes only one request.
func (b *bed) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	namespaces := b.client.CoreV1().Namespaces()
	found, err := namespaces.Get(ctx, Namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at namespace %s: %w", Namespace, err)
	}
	if found.Labels[managedBy] != mote {
		return fmt.Errorf("namespace %s is not mote's (it has no label %s=%s), and the check needs that name; "+
			"if nobody needs it, run mote kubectl delete namespace %s", Namespace, managedBy, mote, Namespace)
	}
	err = namespaces.Delete(ctx, Namespace, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(found.UID))})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove namespace %s: %w", Namespace, err)
	}
	err = wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
		_, err := namespaces.Get(ctx, Namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("wait for namespace %s to go: %w", Namespace, err)
	}
	return nil
}
