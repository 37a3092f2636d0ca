package api

import (
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// Events reports the state of users' objects on behalf of an addon. It sends events, and also logs
// warnings.
type Events struct {
	addon       string
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
}

// NewEvents makes the Events of an addon. The caller closes it.
func NewEvents(client kubernetes.Interface, addon string) *Events {
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	source := corev1.EventSource{Component: "mote-" + addon}
	return &Events{addon, broadcaster, broadcaster.NewRecorder(scheme.Scheme, source)}
}

// Warn reports that something is wrong with object.
func (e *Events) Warn(object runtime.Object, reason, message string) {
	slog.Warn("something is wrong", "component", e.addon, "reason", reason, "message", message)
	e.recorder.Event(object, corev1.EventTypeWarning, reason, message)
}

// Tell reports a change of object that is an improvement or expected.
func (e *Events) Tell(object runtime.Object, reason, format string, args ...any) {
	e.recorder.Event(object, corev1.EventTypeNormal, reason, fmt.Sprintf(format, args...))
}

// Close stops the sending of events. Events that are not sent yet may be lost.
func (e *Events) Close() { e.broadcaster.Shutdown() }
