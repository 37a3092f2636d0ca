package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPodsStartBeforeALongImport checks three things: pods wait for the archives for
// importPatience; a start before the end of the import shows in the status until that end; a short
// import shows nothing.
func TestPodsStartBeforeALongImport(t *testing.T) {
	for name, c := range map[string]struct {
		takes time.Duration
		early bool
	}{
		"short": {importPatience - time.Second, false},
		"long":  {importPatience + time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newImages(Config{ImagesDir: "/var/lib/mote/images"})
				early := false
				imported := p.startWithin(importPatience, func() { early = true })
				time.Sleep(c.takes)
				synctest.Wait()
				require.Equal(t, c.early, early)
				if c.early {
					require.Equal(t, []string{"/var/lib/mote/images: archives are still being imported; a pod whose image is not there yet waits for it"}, p.Trouble())
				}
				imported()
				require.Empty(t, p.Trouble())
				early = false
				time.Sleep(2 * importPatience)
				synctest.Wait()
				require.False(t, early, "ready is called by the end of the import")
			})
		})
	}
}
