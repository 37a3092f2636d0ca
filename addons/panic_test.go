package addons

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/mote-k8s/mote/internal/component"
)

// panicsEnv names the case that a child process of the test runs.
const panicsEnv = "MOTE_TEST_PANICS"

// acted limits the wait of a child process for its own end, which comes at once.
const acted = 30 * time.Second

// TestPanicsEndTheProcess checks that a panic in an addon ends the process, also on goroutines that
// libraries own. A panic that goes unnoticed would leave an addon half dead behind a process that
// looks healthy. DNS queries and HTTP requests, which any client may send, are the exceptions: each
// is answered with an error, and everything else continues.
func TestPanicsEndTheProcess(t *testing.T) {
	one := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "one"}}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: func(any) { panic("on purpose") }}
	cases := map[string]func(context.Context){
		"a component's Run": func(ctx context.Context) {
			group, err := component.NewGroup(component.Unit{Component: panicking{}})
			require.NoError(t, err)
			_ = group.Run(ctx)
		},
		"an informer's handler": func(ctx context.Context) {
			kube := fake.NewClientset(one)
			_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
				ListerWatcher: cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
					ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
						return kube.CoreV1().ConfigMaps("").List(ctx, o)
					},
					WatchFuncWithContext: kube.CoreV1().ConfigMaps("").Watch,
				}, kube),
				ObjectType: one, Handler: handler,
			})
			informer.RunWithContext(ctx)
		},
		"a shared informer's handler": func(ctx context.Context) {
			informer := informers.NewSharedInformerFactory(fake.NewClientset(one), 0).Core().V1().ConfigMaps().Informer()
			_, err := informer.AddEventHandler(handler)
			require.NoError(t, err)
			informer.RunWithContext(ctx)
		},
		"the provisioner's worker": func(ctx context.Context) {
			class := "local"
			mode, policy := storagev1.VolumeBindingImmediate, corev1.PersistentVolumeReclaimDelete
			kube := fake.NewClientset(
				&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: "test", VolumeBindingMode: &mode, ReclaimPolicy: &policy},
				&corev1.PersistentVolumeClaim{
					ObjectMeta: metav1.ObjectMeta{
						Namespace: "ns", Name: "one", UID: "1",
						Annotations: map[string]string{"volume.kubernetes.io/storage-provisioner": "test"},
					},
					Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class},
				})
			controller.NewProvisionController(ctx, kube, "test", panicking{}, controller.LeaderElection(false)).Run(ctx)
		},
	}
	if act, ok := cases[os.Getenv(panicsEnv)]; ok {
		ctx, cancel := context.WithTimeout(t.Context(), acted)
		defer cancel()
		act(ctx)
		<-ctx.Done()
		return
	}
	for name := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPanicsEndTheProcess$")
			cmd.Env = append(os.Environ(), panicsEnv+"="+name)
			printed, err := cmd.CombinedOutput()
			require.Error(t, err)
			require.Equal(t, 2, cmd.ProcessState.ExitCode(), string(printed))
			require.Contains(t, string(printed), "panic: on purpose")
		})
	}
}

// panicking is a component that panics.
type panicking struct{}

func (panicking) Name() string                { return "panicking" }
func (panicking) Run(context.Context) error   { panic("on purpose") }
func (panicking) Ready(context.Context) error { return nil }

func (panicking) Provision(context.Context, controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	panic("on purpose")
}
func (panicking) Delete(context.Context, *corev1.PersistentVolume) error { panic("on purpose") }
