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

// Events tells users what an addon has to say about their objects: as events, and warnings in the log too.
type Events struct {
	addon       string
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
}

// NewEvents makes an addon's teller. Close it.
func NewEvents(client kubernetes.Interface, addon string) *Events {
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	source := corev1.EventSource{Component: "mote-" + addon}
	return &Events{addon, broadcaster, broadcaster.NewRecorder(scheme.Scheme, source)}
}

// Warn says that something about object is wrong.
func (e *Events) Warn(object runtime.Object, reason, message string) {
	slog.Warn("something is wrong", "component", e.addon, "reason", reason, "message", message)
	e.recorder.Event(object, corev1.EventTypeWarning, reason, message)
}

// Tell says that something about object has changed for the better or as it should.
func (e *Events) Tell(object runtime.Object, reason, format string, args ...any) {
	e.recorder.Event(object, corev1.EventTypeNormal, reason, fmt.Sprintf(format, args...))
}

// Close sends nothing any more. Events under way may be lost.
func (e *Events) Close() { e.broadcaster.Shutdown() }
