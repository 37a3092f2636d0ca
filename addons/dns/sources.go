package dns

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

// sources holds all inputs that determine the behaviour of CoreDNS.
type sources struct {
	corefile  string
	files     map[string]string // further keys of the Corefile's ConfigMap, such as zones
	custom    map[string]string // *.override, *.server and the files that they use
	upstreams []netip.Addr
}

func (a sources) equal(b sources) bool {
	return a.corefile == b.corefile && maps.Equal(a.files, b.files) && maps.Equal(a.custom, b.custom) && slices.Equal(a.upstreams, b.upstreams)
}

// sources reads the cached ConfigMaps and the resolver files. missing is true if the ConfigMap of
// the Corefile does not exist.
func (s *Server) sources(store cache.Store) (from sources, missing bool) {
	get := func(name string) map[string]string {
		object, found, err := store.GetByKey(namespace + "/" + name)
		if err != nil || !found {
			return nil
		}
		return object.(*corev1.ConfigMap).Data
	}
	data := get(configName)
	from.corefile = data[corefileKey]
	from.files = maps.Clone(data)
	delete(from.files, corefileKey)
	from.custom = get(customName)
	from.upstreams = upstreams(s.cfg.ResolvConfs, s.cfg.Address, s.cfg.ClusterIP)
	return from, data == nil
}

// write stores the rewritten custom files, and the files that plugins read, in dir. It returns the
// rewritten Corefile, which imports them.
func (from sources) write(dir string) (string, error) {
	r := rewriter{port: Port, upstreams: from.upstreams, dir: dir}
	text, err := r.corefile(corefileKey, from.corefile)
	if err != nil {
		return "", err
	}
	// CoreDNS would warn if there were no file to import.
	files := map[string]string{"none.server": "", "none.override": "", filepath.Base(emptyHosts): ""}
	listens := strings.Contains(text, directiveListen)
	for key, text := range from.custom {
		rewrite := r.corefile
		switch {
		case strings.HasSuffix(key, ".override"):
			rewrite = r.override
		case !strings.HasSuffix(key, ".server"):
			files[key] = text
			continue
		}
		if files[key], err = rewrite(filepath.Join(customDir, key), text); err != nil {
			return "", err
		}
		listens = listens || strings.Contains(files[key], directiveListen)
	}
	if !listens {
		return "", fmt.Errorf("%s - no server block answers on the cluster's DNS address: one without bind is needed, such as .:53 {}", corefileKey)
	}
	if err := errors.Join(os.RemoveAll(dir), writeAll(filepath.Join(dir, customDir), files), writeAll(dir, from.files)); err != nil {
		return "", fmt.Errorf("write the Corefile: %w", err)
	}
	return text, nil
}

func writeAll(dir string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for key, text := range files {
		if err := os.WriteFile(filepath.Join(dir, key), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}
