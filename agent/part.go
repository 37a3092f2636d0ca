package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/mote-k8s/mote/internal/component"
)

// part is a component made of one function. The function blocks until ctx ends. It calls ready
// once, when the component serves.
type part struct {
	name    string
	missing string // Ready returns it when its ctx ends first
	run     func(ctx context.Context, ready func()) error
	serving chan struct{}
}

var _ component.Component = (*part)(nil)

func newPart(name, missing string, run func(ctx context.Context, ready func()) error) *part {
	return &part{name: name, missing: missing, run: run, serving: make(chan struct{})}
}

func (p *part) Name() string { return p.name }

func (p *part) Run(ctx context.Context) error {
	var once sync.Once
	err := p.run(ctx, func() { once.Do(func() { close(p.serving) }) })
	if err != nil && ctx.Err() != nil {
		// Work that a stop interrupts fails, such as the program that writes rules. The next start
		// does it again.
		slog.Info("interrupted by the stop", "component", p.name, "err", err)
		return nil
	}
	return err
}

func (p *part) Ready(ctx context.Context) error {
	select {
	case <-p.serving:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %s: %w", p.name, p.missing, context.Cause(ctx))
	}
}
