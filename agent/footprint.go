package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/mote-k8s/mote/internal/dirlock"
	"github.com/mote-k8s/mote/internal/durable"
)

// footprint records everything that this node leaves outside its own directories. Each entry is
// written before the machine is changed, so that Reset after any crash knows of every change that
// was made.
type footprint struct {
	// Created lists the paths that did not exist before. Reset removes them with all their content.
	Created []string `json:"created,omitempty"`
	// Rules lists the kinds of packet rules ever written: "nftables", "iptables",
	// "iptables-forward".
	Rules []string `json:"rules,omitempty"`
	// Bridge reports that mote made the bridge.
	Bridge bool `json:"bridge,omitempty"`
	// KubeletBinds lists mounts that the kubelet may have made. Reset and StopContainers unmount
	// them.
	KubeletBinds []kubeletBind `json:"kubeletBinds,omitempty"`
}

func readFootprint(c Config) (footprint, error) {
	var f footprint
	data, err := os.ReadFile(c.data().Footprint())
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("read the record of what to remove: %w", err)
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return f, fmt.Errorf("read the record of what to remove %s: %w", c.data().Footprint(), err)
	}
	return f, nil
}

// recordFootprint adds the paths that do not exist yet, and the kind of rules ("" for none).
func recordFootprint(c Config, rules string, paths ...string) error {
	return changeFootprint(c, func(f *footprint) {
		for _, path := range paths {
			_, err := os.Lstat(path)
			if errors.Is(err, fs.ErrNotExist) && !slices.Contains(f.Created, path) {
				f.Created = append(f.Created, path)
			}
		}
		if rules != "" && rules != ProxyNone && !slices.Contains(f.Rules, rules) {
			f.Rules = append(f.Rules, rules)
		}
	})
}

// recordBridge records the bridge. It must be called before the bridge is made.
func recordBridge(c Config) error {
	return changeFootprint(c, func(f *footprint) { f.Bridge = true })
}

// changeFootprint writes the footprint if change changed it. Components may call it at the same
// time.
func changeFootprint(c Config, change func(*footprint)) error {
	if err := os.MkdirAll(c.data().Agent(), 0o700); err != nil {
		return fmt.Errorf("make the node's directory: %w", err)
	}
	unlock, err := dirlock.LockBriefly(c.data().Agent())
	if err != nil {
		return fmt.Errorf("cannot record what a reset is to remove: %w; another mote of this data directory has it, try again", err)
	}
	defer unlock()
	f, err := readFootprint(c)
	if err != nil {
		return err
	}
	before, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode the record of what to remove: %w", err)
	}
	change(&f)
	after, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode the record of what to remove: %w", err)
	}
	if bytes.Equal(before, after) {
		return nil
	}
	return writeFile(c.data().Footprint(), append(after, '\n'), 0o600)
}

// writeFile replaces path durably (durable.WriteFile), and makes its directory with mode 0700.
func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make directory for %s: %w", path, err)
	}
	return durable.WriteFile(path, data, mode)
}
