package server

import (
	"sync"
	"time"
)

const (
	// countInterval is the greatest age of kube-apiserver's counts of objects: it asks the
	// datastore once a minute.
	countInterval = 90 * time.Second
	// unknownBody is the assumed size of a request without a length: the largest object that can be
	// stored.
	unknownBody = 1_500_000
	// maxGrowing limits how many resources are tracked at once, because clients choose the names.
	maxGrowing = 1000
)

// growth counts the bytes of each resource that clients have written in the last one to two
// intervals: the counts of objects may not include them yet.
type growth struct {
	mu       sync.Mutex // guards the fields below
	began    time.Time
	now, old map[string]int64
}

// add records a request that writes, with the length of its body or -1.
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

// turn starts the next interval when the present one is over. The caller holds mu.
func (g *growth) turn() {
	switch age := time.Since(g.began); {
	case age >= 2*countInterval:
		g.began, g.now, g.old = time.Now(), map[string]int64{}, nil
	case age >= countInterval:
		g.began, g.now, g.old = time.Now(), map[string]int64{}, g.now
	}
}
