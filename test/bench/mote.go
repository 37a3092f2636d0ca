package main

import (
	"context"
	"os"
	"path/filepath"
)

// moteData is mote's default data directory, which in a trial is a fresh directory.
const moteData = "/var/lib/mote"

// mote is the cluster under test: one file, default settings.
type mote struct{ trial trial }

func (m *mote) prepare() error {
	images := filepath.Join(moteData, "images")
	if err := os.MkdirAll(images, 0o700); err != nil {
		return err
	}
	if m.trial.Images == "" {
		return nil
	}
	archive, err := os.ReadFile(m.trial.Images)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(images, "bench.tar"), archive, 0o644)
}

func (m *mote) start(_ context.Context, p *programs) error {
	return p.start("mote", nil, append([]string{m.trial.Mote, "server"}, m.trial.MoteArgs...)...)
}

func (m *mote) kubeconfig() string { return filepath.Join(moteData, "kubeconfig") }
