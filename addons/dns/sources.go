package dns

import (
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

// sources is all that decides what CoreDNS does.
type sources struct {
	corefile  string
	custom    map[string]string // *.override and *.server
	upstreams []netip.Addr
}

func (a sources) equal(b sources) bool {
	return a.corefile == b.corefile && maps.Equal(a.custom, b.custom) && slices.Equal(a.upstreams, b.upstreams)
}

// sources reads the ConfigMaps' copies and the resolver files. missing: there is no Corefile at all.
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
	from.custom = make(map[string]string)
	for key, text := range get(customName) {
		if strings.HasSuffix(key, ".server") || strings.HasSuffix(key, ".override") {
			from.custom[key] = text
		}
	}
	from.upstreams = upstreams(s.cfg.ResolvConfs, s.cfg.Address, s.cfg.ClusterIP)
	return from, data == nil
}

// write puts the rewritten custom files into dir and returns the rewritten Corefile, which imports them.
func (from sources) write(dir string) (string, error) {
	r := rewriter{port: Port, upstreams: from.upstreams}
	text, err := r.corefile(corefileKey, from.corefile)
	if err != nil {
		return "", err
	}
	custom := filepath.Join(dir, customDir)
	if err := os.RemoveAll(custom); err != nil {
		return "", fmt.Errorf("write the Corefile: %w", err)
	}
	if err := os.MkdirAll(custom, 0o700); err != nil {
		return "", fmt.Errorf("write the Corefile: %w", err)
	}
	// Without any file to import CoreDNS would warn.
	files := map[string]string{"none.server": "", "none.override": ""}
	for key, text := range from.custom {
		rewrite := r.corefile
		if strings.HasSuffix(key, ".override") {
			rewrite = r.override
		}
		if files[key], err = rewrite(filepath.Join(customDir, key), text); err != nil {
			return "", err
		}
	}
	if !strings.Contains(text+strings.Join(slices.Collect(maps.Values(files)), ""), directiveListen) {
		return "", fmt.Errorf("%s - no server block answers on the cluster's DNS address: one without bind is needed, such as .:53 {}", corefileKey)
	}
	for key, text := range files {
		if err := os.WriteFile(filepath.Join(custom, key), []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("write the Corefile: %w", err)
		}
	}
	return text, nil
}
