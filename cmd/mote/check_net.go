package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-k8s/mote/addons/dns"
	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/agent/netcheck"
	"github.com/mote-k8s/mote/cmd/mote/settings"
	"github.com/mote-k8s/mote/internal/dirlock"
)

// newCheckNetCommand returns the verb that tries the running cluster's network.
func newCheckNetCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "net",
		Short: "Try the running cluster's network: pods, Services, DNS",
		Long: `Try what pods expect of the running cluster's network: the node and pods reach pods, Services, NodePorts, the
API and DNS. Two small pods of an image that every node has are started for that, in a namespace of their own, and
taken away again. Nothing is pulled, and no internet is needed. The exit code is 1 when anything fails.`,
		Args: noArgs,
	}
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "status")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := requireRoot("check net"); err != nil {
			return err
		}
		s, err := load()
		if err != nil {
			return err
		}
		// Who interrupts it wants the pods gone too. A second signal finds Go's default.
		ctx, restore := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer restore()
		quiet := context.AfterFunc(ctx, func() {
			restore()
			fmt.Fprintln(e.stderr, "cleaning up; this takes some seconds")
		})
		defer quiet() // before restore, which ends ctx too
		findings, err := checkNetwork(ctx, e, s)
		if err != nil {
			return err
		}
		return tellFindings(e, findings, output.json(), "the network does not work as it should")
	}
	return cmd
}

func checkNetwork(ctx context.Context, e *env, s *settings.Settings) ([]agent.Finding, error) {
	if e.getenv("MOTE_SANDBOX") != "" {
		return nil, errors.New("cannot check the network of a cluster of \"mote run\": it is in namespaces of its own; check that of a \"mote server\"")
	}
	r, err := askRunning(ctx, s.StatusSocket())
	if err != nil {
		return nil, err
	}
	unlock, err := lockNetworkCheck(filepath.Dir(s.StatusSocket()))
	if err != nil {
		return nil, err
	}
	defer unlock()
	// The running mote's settings count, not those that a start would have now.
	s.DataDir, s.CNI, s.ClusterCIDR = r.DataDir, r.Network.CNI, r.Network.ClusterCIDR
	access, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	s.ClusterDomain = r.Network.ClusterDomain
	if err := bypassProxy(e, s, hostOf(access.Host)); err != nil {
		return nil, err
	}
	findings := agent.CheckNetwork(ctx, agentConfig(s))
	tried, err := netcheck.Run(ctx, netcheck.Config{
		Access:        access,
		CRISocket:     s.ContainerdSocket(),
		NodeName:      r.Node.Name,
		ClusterDNS:    r.Network.ClusterDNS,
		ClusterDomain: r.Network.ClusterDomain,
		OwnDNS:        r.runs(dns.Name),
		OwnProxy:      r.runs("kube-proxy"),
	})
	if err != nil {
		return nil, err
	}
	return append(findings, tried...), nil
}

// lockNetworkCheck keeps two checks from taking away each other's pods. The lock is on a directory that is there
// anyway and goes with the process.
func lockNetworkCheck(dir string) (unlock func(), err error) {
	unlock, err = dirlock.TryLock(dir)
	if errors.Is(err, dirlock.ErrLocked) {
		err = errors.New("another \"mote check net\" runs; wait for its end")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot check the network: %w", err)
	}
	return unlock, nil
}
