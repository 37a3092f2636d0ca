// Command client shows how a Go program uses a cluster through client-go: in a pod with its service
// account, elsewhere with the kubeconfig that KUBECONFIG names.
//
//	client tour NAMESPACE
//		creates, reads, watches, changes and removes ConfigMaps, and prints the events
//	client lead NAMESPACE LEASE
//		waits until it leads, and writes its host's name into the ConfigMap of the lease's name
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	applyv1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/pager"
)

// If a leader ends without releasing its lease, a new one is found within leaseTime.
const leaseTime, renewTime, retryTime = 15 * time.Second, 10 * time.Second, time.Second

// tourTime limits a tour, which takes a second.
const tourTime = time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	config, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		config, err = clientcmd.BuildConfigFromFlags("", os.Getenv(clientcmd.RecommendedConfigPathEnvVar))
	}
	if err != nil {
		return fmt.Errorf("find the cluster: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make the client: %w", err)
	}
	switch {
	case len(args) == 2 && args[0] == "tour":
		return tour(ctx, client, args[1])
	case len(args) == 3 && args[0] == "lead":
		return lead(ctx, client, args[1], args[2])
	}
	return errors.New("usage: client tour NAMESPACE | client lead NAMESPACE LEASE")
}

// tour executes every operation on ConfigMaps of one label, while an informer watches them.
func tour(ctx context.Context, client kubernetes.Interface, namespace string) error {
	ctx, cancel := context.WithTimeout(ctx, tourTime)
	defer cancel()
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	labels := map[string]string{"tour": host}
	selector := "tour=" + host
	seen, err := look(ctx, client, namespace, selector)
	if err != nil {
		return err
	}
	maps := client.CoreV1().ConfigMaps(namespace)
	for i := range 3 {
		config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", host, i), Labels: labels}}
		if _, err := maps.Create(ctx, config, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	listed := 0
	pages := pager.New(pager.SimplePageFunc(func(opts metav1.ListOptions) (runtime.Object, error) { return maps.List(ctx, opts) }))
	pages.PageSize = 1
	if err := pages.EachListItem(ctx, metav1.ListOptions{LabelSelector: selector}, func(runtime.Object) error { listed++; return nil }); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	patch := []byte(`{"data": {"patched": "yes"}}`)
	if _, err := maps.Patch(ctx, host+"-0", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("patch: %w", err)
	}
	applied := applyv1.ConfigMap(host+"-1", namespace).WithLabels(labels).WithData(map[string]string{"applied": "yes"})
	if _, err := maps.Apply(ctx, applied, metav1.ApplyOptions{FieldManager: "client"}); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	if err := maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: selector}); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	count := map[string]int{}
	for count["added"] < 3 || count["updated"] < 2 || count["deleted"] < 3 {
		select {
		case what := <-seen:
			count[what]++
		case <-ctx.Done():
			return fmt.Errorf("the informer saw %v only: %w", count, ctx.Err())
		}
	}
	fmt.Printf("listed %d, added %d, updated %d, deleted %d\n", listed, count["added"], count["updated"], count["deleted"])
	return nil
}

// look starts an informer, waits until it has listed, and sends the events.
func look(ctx context.Context, client kubernetes.Interface, namespace, selector string) (<-chan string, error) {
	seen := make(chan string)
	tell := func(what string) {
		select {
		case seen <- what:
		case <-ctx.Done():
		}
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = selector }))
	informer := factory.Core().V1().ConfigMaps().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { tell("added") },
		UpdateFunc: func(any, any) { tell("updated") },
		DeleteFunc: func(any) { tell("deleted") },
	}); err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil, fmt.Errorf("watch: the first list has not come: %w", ctx.Err())
	}
	return seen, nil
}

// lead takes part in an election until it is told to end, and then releases the lease.
func lead(ctx context.Context, client kubernetes.Interface, namespace, lease string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: namespace, Name: lease}, Client: client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: host},
		},
		LeaseDuration: leaseTime, RenewDeadline: renewTime, RetryPeriod: retryTime, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				leader := applyv1.ConfigMap(lease, namespace).WithData(map[string]string{"leader": host})
				if _, err := client.CoreV1().ConfigMaps(namespace).Apply(ctx, leader, metav1.ApplyOptions{FieldManager: "leader", Force: true}); err != nil {
					fmt.Fprintln(os.Stderr, "client: write down the leader:", err)
				}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("stand for election: %w", err)
	}
	elector.Run(ctx)
	return nil
}
