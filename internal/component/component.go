// Package component holds the lifecycle contract of every long-running component of mote, and the
// Group that starts, watches and stops components in order.
//
// A Component blocks in Run until its context ends. A Group runs Units: a Component and the names
// of the units that must be ready before it starts. Units without an order between them start
// together. The first component that returns ends the group: upstream components are never
// restarted in place; the service manager restarts the process.
//
// All exported methods are safe for concurrent use, except that Group.Run may be called only once.
package component

import "context"

// Component is one long-running component of mote.
//
//	          Run called         serves            ctx ends
//	(waiting) ----------> starting -----> ready ----------> stopped (Run returned nil)
//	                          |             |
//	                          +-------------+--------------> failed  (Run returned an error)
type Component interface {
	// Name returns the component's name in logs, status and flags, e.g. "kube-apiserver".
	Name() string
	// Run blocks until the component has stopped. It returns nil only after ctx has ended and
	// everything that it started has stopped. Any other return is a failure.
	Run(ctx context.Context) error
	// Ready blocks until the component serves. When ctx ends first it returns an error that
	// describes what is missing. It is called only while Run runs.
	Ready(ctx context.Context) error
}

// Troubled is a component that serves although one of its inputs is wrong, for example a user's
// file.
type Troubled interface {
	Component
	// Trouble returns the problems and where they are, one line each.
	Trouble() []string
}

// Unit is a component with its place in the start order.
type Unit struct {
	Component
	// After names the units of the same group that must be ready before this one starts, and that
	// stop only after this one has stopped.
	After []string
}
