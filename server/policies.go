package server

import (
	"embed"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apiserver/pkg/audit/policy"

	"github.com/mote-k8s/mote/internal/durable"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/internal/regular"
)

// Values of Config.Profile.
const (
	// ProfileDefault breaks no workload that runs on upstream Kubernetes.
	ProfileDefault = "default"
	// ProfileCIS also meets the controls of the CIS Kubernetes benchmark for which some workloads
	// have to be changed: docs/explanation/security.md.
	ProfileCIS = "cis"
)

// Values of Config.AuditPolicy other than a file.
const (
	AuditOff     = "off"
	AuditDefault = "default"
)

//go:embed policies
var policies embed.FS

// policyFile returns the path of the copy of a file of policies/ for upstream, which reads its
// configuration only from files.
func (s *apiServer) policyFile(name string) string {
	return filepath.Join(layout.Data(s.cfg.DataDir).Policies(), name)
}

// AuditLog returns the path of the audit log. It is outside <data-dir>/server, because snapshots
// contain all of that directory.
func (c Config) AuditLog() string { return layout.Data(c.DataDir).AuditLog() }

// auditArgs returns the arguments that turn on the log when there is a policy. Ten files of 100 MB
// for 30 days at most are the CIS benchmark's figures; the nine that are finished are compressed,
// to a tenth or less. Upstream creates the directory with mode 0700 and the files with 0600.
func (s *apiServer) auditArgs() []arg {
	file := s.cfg.AuditPolicy
	switch file {
	case AuditOff:
		return nil
	case AuditDefault:
		file = s.policyFile("audit.yaml")
	}
	return []arg{
		{"audit-policy-file", file},
		{"audit-log-path", s.cfg.AuditLog()},
		{"audit-log-maxsize", "100"},
		{"audit-log-maxbackup", "10"},
		{"audit-log-maxage", "30"},
		{"audit-log-compress", "true"},
	}
}

// profileArgs returns the arguments of ProfileCIS.
func (s *apiServer) profileArgs() []arg {
	if s.cfg.Profile != ProfileCIS {
		return nil
	}
	args := []arg{
		// Pods' tokens are then valid for an hour instead of a year. Upstream's year is for clients
		// that read their token once.
		{"service-account-extend-token-expiration", "false"},
		{"admission-control-config-file", s.policyFile("admission.yaml")},
	}
	if s.ownAuthentication() {
		// Upstream takes either these flags or the file. Without the file anonymous requests can
		// only be all on or all off.
		return append(args, arg{"anonymous-auth", "false"})
	}
	return append(args, arg{"authentication-config", s.policyFile("authentication.yaml")})
}

// ownAuthentication reports whether the user's arguments exclude mote's authentication
// configuration.
func (s *apiServer) ownAuthentication() bool {
	return slices.ContainsFunc(argNames(s.cfg.APIServerArgs), func(name string) bool {
		return name == "anonymous-auth" || strings.HasPrefix(name, "oidc-")
	})
}

// admissionPlugins returns the plugins to enable besides upstream's defaults. parseArgs adds the
// user's. Plugins that the user disables are left out, as upstream refuses a plugin in both lists.
func (s *apiServer) admissionPlugins() string {
	plugins := []string{"NodeRestriction"}
	if s.cfg.Profile == ProfileCIS {
		plugins = append(plugins, "DenyServiceExternalIPs", "EventRateLimit")
	}
	for _, value := range argValues(s.cfg.APIServerArgs, "disable-admission-plugins") {
		disabled := strings.Split(value, ",")
		plugins = slices.DeleteFunc(plugins, func(plugin string) bool { return slices.Contains(disabled, plugin) })
	}
	return strings.Join(plugins, ",")
}

// writePolicies writes the files that the arguments name.
func (s *apiServer) writePolicies() error {
	var names []string
	if s.cfg.AuditPolicy == AuditDefault {
		names = append(names, "audit.yaml")
	}
	if s.cfg.Profile == ProfileCIS {
		names = append(names, "admission.yaml", "authentication.yaml")
	}
	if len(names) == 0 {
		return nil
	}
	if err := durable.MakeDir(s.policyFile("")); err != nil {
		return fmt.Errorf("write policies: %w", err)
	}
	for _, name := range names {
		data, err := policies.ReadFile("policies/" + name)
		if err == nil {
			err = durable.UpdateFile(s.policyFile(name), data, 0o600)
		}
		if err != nil {
			return fmt.Errorf("write policies: %w", err)
		}
	}
	return nil
}

// checkAuditPolicy reads the user's policy before anything is created: upstream would read it when
// the datastore already runs.
func checkAuditPolicy(file string) error {
	if file == AuditOff || file == AuditDefault {
		return nil
	}
	warning, err := regular.CheckOwner(file)
	if err != nil {
		return fmt.Errorf("audit policy: %w", err)
	}
	if warning != "" {
		slog.Warn("audit policy is another user's", "component", "kube-apiserver", "message", warning)
	}
	if _, err := policy.LoadPolicyFromFile(file); err != nil {
		return fmt.Errorf("audit policy: %w", err)
	}
	return nil
}
