package server

import (
	"sync"
	"time"
)

const (
	// countInterval is how old kube-apiserver's counts of objects may be: it asks the datastore once a minute.
	countInterval = 90 * time.Second
	// unknownBody is taken for the size of a request that does not say it: the largest object that is stored.
	unknownBody = 1_500_000
	// maxGrowing is how many resources are followed at once. Clients choose the names.
	maxGrowing = 1000
)

// growth is how many bytes of each resource clients have written in the last one to two intervals: what counts of
// objects may not have yet.
type growth struct {
	mu       sync.Mutex // guards what follows
	began    time.Time
	now, old map[string]int64
}

// add notes a request that writes, with the length of its body or -1.
func (g *growth) add(resource string, length int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.turn()
	if length < 0 {
		length = unknownBody
	}
	if _, ok := g.now[resource]; ok || len(g.now) < maxGrowing {
		g.now[resource] += length
	}
}

func (g *growth) of(resource string) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.turn()
	return g.now[resource] + g.old[resource]
}

// turn is called with mu held.
func (g *growth) turn() {
	switch age := time.Since(g.began); {
	case age >= 2*countInterval:
		g.began, g.now, g.old = time.Now(), map[string]int64{}, nil
	case age >= countInterval:
		g.began, g.now, g.old = time.Now(), map[string]int64{}, g.now
	}
}
