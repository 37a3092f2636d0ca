package api

import "github.com/mote-k8s/mote/internal/component"

// Troubles holds an addon's reports in `mote status` on faulty input, as long as the fault lasts.
type Troubles = component.Troubles
