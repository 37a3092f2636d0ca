package agent

import (
	"context"

	"k8s.io/kubernetes/pkg/volume"
)

// volumeGate delays the kubelet at the one step that must not run early: the initialisation of its
// volume plugins (README.md, "CSI"). It is the first plugin of the list, and its Init waits. After
// that it is a plugin that supports nothing. The kubelet's earlier steps run while the controller
// manager starts.
type volumeGate struct {
	volume.VolumePlugin // any other plugin, for the methods that are never called
	ctx                 context.Context
	free                func(context.Context) error
}

func (g volumeGate) Init(volume.VolumeHost) error      { return g.free(g.ctx) }
func (volumeGate) GetPluginName() string               { return "mote.io/gate" }
func (volumeGate) CanSupport(spec *volume.Spec) bool   { return false }
func (volumeGate) RequiresRemount(_ *volume.Spec) bool { return false }

// gated puts the gate before plugins, if there is something to wait for.
func gated(ctx context.Context, plugins []volume.VolumePlugin, free func(context.Context) error) []volume.VolumePlugin {
	if free == nil || len(plugins) == 0 {
		return plugins
	}
	gate := volumeGate{VolumePlugin: plugins[0], ctx: ctx, free: free}
	return append([]volume.VolumePlugin{gate}, plugins...)
}
