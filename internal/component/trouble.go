package component

import (
	"slices"
	"sync"
)

// Troubles is what a component says in `mote status` while something that it was given is wrong, by what it is about.
// The zero value is empty. It implements Troubled for the component that embeds it.
type Troubles struct {
	mu   sync.Mutex // guards said
	said map[string]string
}

// Note keeps what is wrong about something; "" is nothing. It tells whether that differs from what was said last, so
// that an event is due.
func (t *Troubles) Note(about, what string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.said[about]
	switch {
	case what == "":
		delete(t.said, about)
	case t.said == nil:
		t.said = map[string]string{about: what}
	default:
		t.said[about] = what
	}
	return was != what
}

// Forget drops what is said about all that gone says is gone.
func (t *Troubles) Forget(gone func(about string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for about := range t.said {
		if gone(about) {
			delete(t.said, about)
		}
	}
}

// Trouble implements Troubled.
func (t *Troubles) Trouble() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []string
	for about, what := range t.said {
		list = append(list, about+": "+what)
	}
	slices.Sort(list)
	return list
}
