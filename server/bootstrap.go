package server

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	schedulingv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"github.com/mote-k8s/mote/server/pki"
)

// Upstream's two hooks that write bootstrap objects first sleep for a second, which is most of the
// time from exec to ready. Then they write some 150 objects one after the other. mote's hooks of
// the same names write the same objects, with the same reconciler, without the sleep and in
// parallel.
const (
	bootstrapRetry   = 50 * time.Millisecond
	bootstrapTimeout = 30 * time.Second // as upstream: then the server gives up
	bootstrapWriters = 16               // the datastore combines concurrent writes into one fsync
)

// task writes one object; it may be repeated.
type task func(ctx context.Context) error

func bootstrapHooks() map[string]genericapiserver.PostStartHookFunc {
	return map[string]genericapiserver.PostStartHookFunc{
		rolesHook:           hook(roleTasks),
		priorityClassesHook: hook(priorityClassTasks),
	}
}

func hook(tasks func(kubernetes.Interface) []task) genericapiserver.PostStartHookFunc {
	return func(hookCtx genericapiserver.PostStartHookContext) error {
		client, err := kubernetes.NewForConfig(hookCtx.LoopbackClientConfig)
		if err != nil {
			return err
		}
		return runTasks(hookCtx, tasks(client))
	}
}

// runTasks runs tasks in parallel and repeats the failed ones until none is left.
func runTasks(ctx context.Context, tasks []task) error {
	var errs []error
	err := wait.PollUntilContextTimeout(ctx, bootstrapRetry, bootstrapTimeout, true, func(ctx context.Context) (bool, error) {
		tasks, errs = runOnce(ctx, tasks)
		if len(tasks) > 0 {
			slog.Debug("bootstrap objects are tried again", "component", "kube-apiserver", "left", len(tasks), "err", errs[0])
		}
		return len(tasks) == 0, nil
	})
	if err != nil && len(errs) > 0 {
		return fmt.Errorf("write bootstrap objects: %w", utilerrors.NewAggregate(errs))
	}
	return err
}

// runOnce returns the tasks that failed, with their errors.
func runOnce(ctx context.Context, tasks []task) (failed []task, errs []error) {
	var (
		mu      sync.Mutex // guards failed and errs
		wg      sync.WaitGroup
		writers = make(chan struct{}, bootstrapWriters)
	)
	for _, t := range tasks {
		wg.Go(func() {
			writers <- struct{}{}
			defer func() { <-writers }()
			if err := t(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed, errs = append(failed, t), append(errs, err)
			}
		})
	}
	wg.Wait()
	return failed, errs
}

// roleTasks returns the tasks that reconcile upstream's bootstrap policy, and mote's binding for
// the apiserver as the kubelets' client. It omits upstream's migrations from clusters older than
// 1.14: no mote cluster is that old.
func roleTasks(client kubernetes.Interface) []task {
	rbac, namespaces := client.RbacV1(), client.CoreV1().Namespaces()
	var tasks []task
	role := func(owner reconciliation.RuleOwner, modifier reconciliation.RuleOwnerModifier) {
		tasks = append(tasks, func(context.Context) error {
			o := reconciliation.ReconcileRoleOptions{Role: owner, Client: modifier, Confirm: true}
			_, err := o.Run()
			return err
		})
	}
	binding := func(owner reconciliation.RoleBinding, modifier reconciliation.RoleBindingModifier) {
		tasks = append(tasks, func(context.Context) error {
			o := reconciliation.ReconcileRoleBindingOptions{RoleBinding: owner, Client: modifier, Confirm: true}
			_, err := o.Run()
			return err
		})
	}
	for _, r := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &r}, reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()})
	}
	bindings := append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...)
	for _, b := range append(bindings, kubeletClientBinding()) {
		binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &b},
			reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()})
	}
	for _, roles := range bootstrappolicy.NamespaceRoles() {
		for _, r := range roles {
			role(reconciliation.RoleRuleOwner{Role: &r}, reconciliation.RoleModifier{Client: rbac, NamespaceClient: namespaces})
		}
	}
	for _, bindings := range bootstrappolicy.NamespaceRoleBindings() {
		for _, b := range bindings {
			binding(reconciliation.RoleBindingAdapter{RoleBinding: &b},
				reconciliation.RoleBindingClientAdapter{Client: rbac, NamespaceClient: namespaces})
		}
	}
	return tasks
}

// kubeletClientBinding returns the binding that lets the apiserver call kubelets: logs, exec,
// metrics.
func kubeletClientBinding() rbacv1.ClusterRoleBinding {
	return rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{
			Name:        pki.KubeletClientUser,
			Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
		},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:kubelet-api-admin"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: pki.KubeletClientUser}},
	}
}

func priorityClassTasks(client kubernetes.Interface) []task {
	classes := client.SchedulingV1().PriorityClasses()
	var tasks []task
	for _, class := range schedulingv1.SystemPriorityClasses() {
		tasks = append(tasks, func(ctx context.Context) error {
			_, err := classes.Get(ctx, class.Name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				_, err = classes.Create(ctx, class, metav1.CreateOptions{})
			}
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
	}
	return tasks
}
