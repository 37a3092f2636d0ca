package api

import "github.com/mote-k8s/mote/internal/component"

// Troubles is what an addon says in `mote status` while something that it was given is wrong.
type Troubles = component.Troubles
