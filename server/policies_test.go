package server

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

func TestProfile(t *testing.T) {
	cfg := testConfig(t)
	cfg.Profile, cfg.AuditPolicy = ProfileCIS, ""
	plane, err := Prepare(cfg)
	require.NoError(t, err)
	flags := flagValues(plane)
	require.Equal(t, "false", flags("service-account-extend-token-expiration"))
	require.Equal(t, "[NodeRestriction,DenyServiceExternalIPs,EventRateLimit]", flags("enable-admission-plugins"))
	require.Equal(t, filepath.Join(cfg.DataDir, "audit/audit.log"), flags("audit-log-path"))
	for name, file := range map[string]string{
		"audit-policy-file": "audit.yaml", "admission-control-config-file": "admission.yaml", "authentication-config": "authentication.yaml",
	} {
		path := filepath.Join(cfg.DataDir, "server/policies", file)
		require.Equal(t, path, flags(name))
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
}

// TestProfileGivesWay checks that the user's arguments win. Where upstream does not accept both,
// mote's are left out.
func TestProfileGivesWay(t *testing.T) {
	cfg := testConfig(t)
	cfg.Profile, cfg.AuditPolicy = ProfileCIS, AuditOff
	cfg.APIServerArgs = []string{
		"oidc_issuer_url=https://id.example", "oidc-client-id=mote", "enable-admission-plugins=AlwaysPullImages",
		"disable-admission-plugins=EventRateLimit,DefaultTolerationSeconds",
	}
	plane, err := Prepare(cfg)
	require.NoError(t, err)
	flags := flagValues(plane)
	require.Empty(t, flags("authentication-config"))
	require.Equal(t, "false", flags("anonymous-auth"))
	require.Empty(t, flags("audit-log-path"))
	require.Equal(t, "[NodeRestriction,DenyServiceExternalIPs,AlwaysPullImages]", flags("enable-admission-plugins"))
}

func TestDefaultsHaveNoPolicies(t *testing.T) {
	cfg := testConfig(t)
	cfg.APIServerArgs = []string{"enable-admission-plugins=AlwaysPullImages"}
	plane, err := Prepare(cfg)
	require.NoError(t, err)
	require.Equal(t, "[NodeRestriction,AlwaysPullImages]", flagValues(plane)("enable-admission-plugins"))
	require.NoDirExists(t, filepath.Join(cfg.DataDir, "server/policies"))
}

func flagValues(plane *ControlPlane) func(name string) string {
	flags := plane.apiserver.options.Flags()
	return func(name string) string {
		for _, set := range flags.FlagSets {
			if f := set.Lookup(name); f != nil {
				return f.Value.String()
			}
		}
		return "no such flag"
	}
}

func TestAuditPolicyFile(t *testing.T) {
	cfg := testConfig(t)
	cfg.AuditPolicy = filepath.Join(t.TempDir(), "policy.yaml")
	write := func(text string, mode os.FileMode) error {
		require.NoError(t, os.WriteFile(cfg.AuditPolicy, []byte(text), mode))
		require.NoError(t, os.Chmod(cfg.AuditPolicy, mode))
		_, err := Prepare(cfg)
		return err
	}
	const good = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n"
	require.ErrorContains(t, write("rules: 7\n", 0o600), "audit policy: ")
	require.ErrorContains(t, write(good, 0o666), "audit policy: ")
	require.NoDirExists(t, cfg.DataDir, "a wrong policy is found before anything is made")
	require.NoError(t, write(good, 0o644))
}

// TestAuditPolicy asks upstream's evaluator how the policy in the file treats requests.
func TestAuditPolicy(t *testing.T) {
	data, err := policies.ReadFile("policies/audit.yaml")
	require.NoError(t, err)
	loaded, err := policy.LoadPolicyFromBytes(data)
	require.NoError(t, err)
	evaluator := policy.NewPolicyRuleEvaluator(loaded)

	const none, metadata, request = audit.LevelNone, audit.LevelMetadata, audit.LevelRequest
	for _, test := range []struct {
		user, group          string
		verb, apiGroup, kind string // kind is a resource, a resource/subresource or a path
		want                 audit.Level
	}{
		{"jane", "", "create", "", "secrets", metadata},
		{"admin", "system:masters", "get", "", "secrets", metadata},
		{"admin", "system:masters", "patch", "", "configmaps", metadata},
		{"jane", "", "create", "", "serviceaccounts/token", metadata},
		{"system:node:n1", "system:nodes", "create", "", "serviceaccounts/token", metadata},
		{"jane", "", "create", "authentication.k8s.io", "tokenreviews", metadata},
		{"jane", "", "create", "", "pods", request},
		{"jane", "", "delete", "apps", "deployments", request},
		{"jane", "", "update", "rbac.authorization.k8s.io", "clusterrolebindings", request},
		{"jane", "", "create", "example.com", "vaults", metadata},
		{"jane", "", "list", "", "pods", metadata},
		{"jane", "", "create", "", "pods/exec", metadata},
		{"jane", "", "get", "", "nodes/proxy", metadata},
		{"system:anonymous", "system:unauthenticated", "list", "", "secrets", metadata},
		{"system:serviceaccount:kube-system:job-controller", "system:serviceaccounts:kube-system", "create", "", "pods", metadata},
		{"system:serviceaccount:kube-system:job-controller", "system:serviceaccounts:kube-system", "list", "", "pods", none},
		{"mote:addons", "system:masters", "watch", "", "services", none},
		{"mote:addons", "system:masters", "create", "authorization.k8s.io", "subjectaccessreviews", none},
		{"mote:addons", "system:masters", "update", "apps", "deployments", metadata},
		{"system:node:n1", "system:nodes", "get", "", "pods", none},
		{"system:node:n1", "system:nodes", "patch", "", "nodes/status", none},
		{"system:node:n1", "system:nodes", "delete", "", "pods", metadata},
		{"system:node:n1", "system:nodes", "update", "coordination.k8s.io", "leases", none},
		{"jane", "", "create", "", "events", none},
		{"admin", "system:masters", "get", "", "/readyz", none},
		{"jane", "", "get", "", "/apis/apps/v1", none},
		{"jane", "", "get", "", "/flagz", metadata},
	} {
		attributes := authorizer.AttributesRecord{
			User: &user.DefaultInfo{Name: test.user, Groups: []string{test.group}}, Verb: test.verb,
			APIGroup: test.apiGroup, ResourceRequest: test.kind[0] != '/', Path: test.kind,
		}
		if attributes.ResourceRequest {
			attributes.Resource, attributes.Subresource = splitResource(test.kind)
		}
		require.Equal(t, test.want, evaluator.EvaluatePolicyRule(attributes).Level, "%+v", test)
	}
}

func splitResource(kind string) (resource, subresource string) {
	resource, subresource = filepath.Split(kind)
	if resource == "" {
		return subresource, ""
	}
	return resource[:len(resource)-1], subresource
}
