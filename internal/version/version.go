// Package version returns the versions of mote and of the components in this file.
//
// The versions of the compiled-in modules come from the build information that the Go linker
// writes, so they are correct even for a plain "go build". scripts/build stamps only mote's own
// version and the one that Kubernetes reports.
package version

import (
	"runtime"
	"runtime/debug"
	"strings"

	kubernetes "k8s.io/component-base/version"
)

// mote is stamped by scripts/build with -ldflags "-X
// github.com/mote-k8s/mote/internal/version.mote=v0.1.0".
var mote = "v0.0.0-dev"

// runc is built from the nested module agent/payload/src, which is missing in the build
// information. A test compares this constant with that go.mod.
const runc = "v1.5.2"

// Info contains the versions of mote and of its largest components.
type Info struct {
	Mote       string `json:"mote"`
	Kubernetes string `json:"kubernetes"`
	Containerd string `json:"containerd"`
	Runc       string `json:"runc"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
}

// Get returns the versions of the running file.
func Get() Info {
	info := Info{
		Mote:       mote,
		Kubernetes: kubernetes.Get().GitVersion,
		Containerd: "unknown",
		Runc:       runc,
		Go:         runtime.Version(),
		Platform:   runtime.GOOS + "/" + runtime.GOARCH,
	}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return info
	}
	for _, m := range build.Deps {
		switch m.Path {
		case "k8s.io/kubernetes":
			// A build without the stamp reports a placeholder.
			if strings.HasPrefix(info.Kubernetes, "v0.0.0") {
				info.Kubernetes = m.Version
			}
		case "github.com/containerd/containerd/v2":
			info.Containerd = m.Version
		}
	}
	return info
}
