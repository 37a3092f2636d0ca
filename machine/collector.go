package machine

import "runtime/debug"

// Garbage collection, as GOGC: rare while a start allocates much that stays, thrifty afterwards.
// The variable GOGC overrides both.
const (
	startGCPercent = 200
	idleGCPercent  = 50
)

// settle trades the speed of the start for the memory of the years after it.
func settle(getenv func(string) string) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(idleGCPercent)
	}
	debug.FreeOSMemory()
}
