package server

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"github.com/mote-k8s/mote/internal/series"
	"github.com/mote-k8s/mote/server/pki"
)

type scheduler struct {
	cfg     Config
	options *options.Options
	health  string // URL from when the options were parsed: Run changes the options
}

// newScheduler parses the arguments; the files that they name need not exist yet.
func newScheduler(cfg Config, creds *pki.Credentials) (*scheduler, error) {
	opts := options.NewOptions()
	ours := append(servingArgs(cfg, creds, creds.Kubeconfig("scheduler")), arg{"secure-port", "10259"})
	if err := parseArgs(*opts.Flags, "scheduler-arg", ours, cfg.SchedulerArgs); err != nil {
		return nil, err
	}
	if err := needsPort("scheduler-arg", opts.SecureServing); err != nil {
		return nil, err
	}
	return &scheduler{cfg: cfg, options: opts, health: healthURL(opts.SecureServing, "/readyz")}, nil
}

func (*scheduler) Name() string { return "kube-scheduler" }

func (s *scheduler) Run(ctx context.Context) error {
	stop, err := s.cfg.listen(ctx, s.options.SecureServing, statusBudget(s.Name()))
	if err != nil {
		return err
	}
	defer stop()
	config, instance, err := app.Setup(ctx, s.options)
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	front, err := newFront(series.Scheduler, config.SecureServing, &config.Authentication, &config.Authorization)
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	defer front.serve(ctx)()
	// Run returns an error for every end, also for a requested one.
	if err := app.Run(ctx, config, instance); ctx.Err() == nil {
		return err
	}
	return nil
}

// Ready waits until /readyz returns ok, after the scheduler has seen all nodes and pods.
func (s *scheduler) Ready(ctx context.Context) error {
	return waitHealthy(ctx, healthTLS(), s.health, acceptAny)
}

func joinHostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
