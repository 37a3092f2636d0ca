// Package version tells what this file is made of.
//
// The versions of what is compiled in come from the build information that the Go linker writes, so
// they are true even for a plain "go build"; only mote's own and the one that Kubernetes reports
// are stamped by scripts/build.
package version

import (
	"runtime"
	"runtime/debug"
	"strings"

	kubernetes "k8s.io/component-base/version"
)

// mote is stamped by scripts/build with -ldflags "-X github.com/mote-k8s/mote/internal/version.mote=v0.1.0".
var mote = "v0.0.0-dev"

// runc is built from the nested module agent/payload/src, which the build information does not know;
// a test compares it with that go.mod.
const runc = "v1.5.2"

// Info is the versions of mote and of its largest parts.
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
			// An unstamped build reports a placeholder.
			if strings.HasPrefix(info.Kubernetes, "v0.0.0") {
				info.Kubernetes = m.Version
			}
		case "github.com/containerd/containerd/v2":
			info.Containerd = m.Version
		}
	}
	return info
}
