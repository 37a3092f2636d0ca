// Package machine is the node that runs on this machine under one set of settings: its roles and their start order, the lock of its
// data directory, its status, and what the verbs do to it from outside (stop, reset, install, checks).
//
// It is the only package that knows the settings as a whole. It turns them into the Config of each part once, so that a part
// gets plain values. cmd/mote parses, calls this package and prints.
//
// Reading starts at Machine.Run, the life of a node. A Machine may be used by several goroutines.
package machine

import (
	"io"

	"github.com/mote-k8s/mote/machine/settings"
)

// Machine is the node that settings describe, whether it runs or not.
type Machine struct {
	*settings.Settings
	env Env
}

// Env is what a Machine gets from the program around it.
type Env struct {
	// Args is the command line of the process, with the name of the program.
	Args []string
	// Stderr is where messages for people and the log go. Terminal reports whether a person watches it.
	Stderr   io.Writer
	Terminal bool
	// Getenv returns a variable of the environment, "" if it is not set.
	Getenv func(name string) string
	// Steps reports the steps of what takes long.
	Steps Steps
}

// Steps reports what is done to people, step by step.
type Steps interface {
	// Do reports a step before or after it has called it, and returns the step's error.
	Do(what string, step func() error) error
}

// New returns the node that s describes. s must not be changed any more.
func New(s *settings.Settings, env Env) *Machine { return &Machine{s, env} }

// with returns m with settings that change has changed.
func (m *Machine) with(change func(*settings.Settings)) *Machine {
	s := *m.Settings
	change(&s)
	return &Machine{&s, m.env}
}
