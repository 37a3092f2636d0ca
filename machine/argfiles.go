package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/mote-k8s/mote/internal/regular"
)

// checkArgFiles refuses special files in upstream arguments: upstream opens any path it is given
// and would read such a file forever. Upstream reports a missing file in its own words.
func (m *Machine) checkArgFiles() error {
	for _, part := range []struct {
		setting string
		args    []string
	}{
		{"apiserver-arg", m.APIServerArgs},
		{"controller-manager-arg", m.ControllerManagerArgs},
		{"scheduler-arg", m.SchedulerArgs},
		{"kubelet-arg", m.KubeletArgs},
		{"proxy-arg", m.ProxyArgs},
	} {
		for _, arg := range part.args {
			name, value, _ := strings.Cut(arg, "=")
			for _, path := range argFiles(name, value) {
				if err := checkRegular(path); err != nil {
					return fmt.Errorf("--%s %s: %w", part.setting, name, err)
				}
			}
		}
	}
	return nil
}

// argFiles returns the files that an upstream argument makes its component read.
func argFiles(name, value string) []string {
	switch {
	case !filepath.IsAbs(value):
		return nil
	case name == "config-dir": // drop-in files of the kubelet
		files, err := filepath.Glob(filepath.Join(value, "*.conf"))
		if err != nil { // the path contains pattern characters
			return nil
		}
		return files
	case strings.HasSuffix(name, "-file"), strings.HasSuffix(name, "config"):
		return []string{value}
	}
	return nil
}

func checkRegular(path string) error {
	f, err := regular.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}
