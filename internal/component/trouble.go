package component

import (
	"slices"
	"sync"
)

// Troubles holds the problems of a component in "mote status" while some of its inputs are wrong,
// by subject. The zero value is empty. It implements Troubled for the component that embeds it.
type Troubles struct {
	mu   sync.Mutex // guards said
	said map[string]string
}

// Note records the problem with a subject; "" means none. It reports whether the problem differs
// from the last one, so that an event is due.
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

// Forget drops the problems of all subjects for which gone returns true.
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
