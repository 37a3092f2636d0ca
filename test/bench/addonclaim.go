package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
)

// claimPart measures the time until a volume is ready that is created together with its pod.
func claimPart() addonPart {
	return addonPart{name: "claim", inside: measureClaims, figures: []addonFigure{
		{what: "claim and its pod created to claim Bound", format: "%.0f ms", mote: "bound", percentile: 50},
		{what: "claim and its pod created to volume mounted", format: "%.0f ms", mote: "mounted", percentile: 50, budget: 1000},
		{what: "to pod Running; beside it a pod without a claim", format: "%.0f ms", mote: "running", other: "running without", percentile: 50},
	}}
}

func measureClaims(ctx context.Context, a *addonRoom) error {
	for round := range a.Rounds {
		name := fmt.Sprintf("claimed-%d", round)
		if err := a.measureClaim(ctx, name); err != nil {
			return fmt.Errorf("pod %s with a claim: %w", name, err)
		}
		if err := a.client.deletePod(ctx, name); err != nil {
			return err
		}
		plain := fmt.Sprintf("plain-%d", round)
		timing, err := a.client.runPod(ctx, plain)
		if err != nil {
			return err
		}
		a.add("running without", milliseconds(timing.running.Sub(timing.created))...)
		if err := a.client.deletePod(ctx, plain); err != nil {
			return err
		}
	}
	return nil
}

// measureClaim creates a claim and a pod with it, and measures the steps that follow.
func (a *addonRoom) measureClaim(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	claims, pods := a.client.CoreV1().PersistentVolumeClaims(metav1.NamespaceDefault), a.client.CoreV1().Pods(metav1.NamespaceDefault)
	size := quantity.MustParse("1Mi")
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: size}},
		},
	}
	pod := podOf(name)
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
	}}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}

	var begin time.Time
	mounted := make(chan time.Time, 1)
	mountErr := make(chan error, 1)
	create := func() error {
		begin = time.Now()
		_, err := claims.Create(ctx, claim, metav1.CreateOptions{})
		if err == nil {
			_, err = pods.Create(ctx, pod, metav1.CreateOptions{})
		}
		go func() {
			at, err := awaitMount(ctx)
			mounted <- at
			mountErr <- err
		}()
		return err
	}
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	bound, err := await(ctx, func() (watch.Interface, error) {
		return claims.Watch(ctx, metav1.ListOptions{FieldSelector: selector})
	}, create, func(event watch.Event) bool {
		claim, ok := event.Object.(*corev1.PersistentVolumeClaim)
		return ok && claim.Status.Phase == corev1.ClaimBound
	})
	if err != nil {
		return err
	}
	running, err := await(ctx, a.client.watchPod(ctx, name), nil, func(event watch.Event) bool {
		pod, ok := event.Object.(*corev1.Pod)
		return ok && pod.Status.Phase == corev1.PodRunning
	})
	if err := errors.Join(err, <-mountErr); err != nil {
		return err
	}
	a.add("bound", milliseconds(bound.Sub(begin))...)
	a.add("mounted", milliseconds((<-mounted).Sub(begin))...)
	a.add("running", milliseconds(running.Sub(begin))...)
	return nil
}

// awaitMount returns when the kubelet has mounted a volume of class local; no other pod has one.
func awaitMount(ctx context.Context) (time.Time, error) {
	err := poll(ctx, func() error {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err == nil && !strings.Contains(string(mounts), "/volumes/kubernetes.io~local-volume/") {
			err = errors.New("no volume is mounted")
		}
		return err
	})
	return time.Now(), err
}
