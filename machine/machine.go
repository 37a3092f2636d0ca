// Package machine is the node that runs on this machine under one set of settings: its roles and
// their start order, the lock of its data directory, its status, and the operations of the verbs on
// it from outside (stop, reset, install, checks).
//
// It is the only package that knows the settings as a whole. It converts them into the Config of
// each component once, so that a component gets plain values. cmd/mote parses arguments, calls this
// package and prints.
//
// Start reading at Machine.Run, the life of a node. A Machine is safe for concurrent use.
package machine

import (
	"io"

	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/machine/settings"
)

// Machine is the node that the settings describe, whether it runs or not.
type Machine struct {
	*settings.Settings
	env Env
}

// Env is the environment that the calling program gives a Machine.
type Env struct {
	// Args is the command line of the process, with the name of the program.
	Args []string
	// Stderr receives messages for people and the log. Terminal reports whether it is a terminal.
	Stderr   io.Writer
	Terminal bool
	// Getenv returns an environment variable, or "" if it is not set.
	Getenv func(name string) string
	// Steps reports the steps of long operations.
	Steps Steps
}

// Steps reports the progress of an operation to people, step by step.
type Steps interface {
	// Do calls step, reports it before or after the call, and returns its error.
	Do(what string, step func() error) error
}

// New returns the node that s describes. The caller must not change s afterwards.
func New(s *settings.Settings, env Env) *Machine { return &Machine{s, env} }

// with returns a Machine with the settings of m after change has changed a copy of them.
func (m *Machine) with(change func(*settings.Settings)) *Machine {
	s := *m.Settings
	change(&s)
	return &Machine{&s, m.env}
}

// data returns the layout of the data directory.
func (m *Machine) data() layout.Data { return layout.Data(m.DataDir) }
