package machine

import "runtime/debug"

// Targets of the garbage collector, in percent as in GOGC. It runs rarely during the start, which
// allocates much memory that stays in use, and often afterwards to save memory. The variable GOGC
// overrides both.
const (
	startGCPercent = 200
	idleGCPercent  = 50
)

// settle ends the fast collection of the start and saves memory from then on.
func settle(getenv func(string) string) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(idleGCPercent)
	}
	debug.FreeOSMemory()
}
