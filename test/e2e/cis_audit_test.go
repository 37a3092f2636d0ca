package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

// auditEvent has the fields of a line of the audit log that the test checks.
type auditEvent struct {
	Level, Verb string
	User        struct{ Username string }
	ObjectRef   struct{ Resource, Subresource, Name, APIGroup string }
	Request     json.RawMessage `json:"requestObject"`
	Response    json.RawMessage `json:"responseObject"`
}

// cisAudit sends requests as users do. It checks that the log has them, and that it lacks the
// values that must not be there.
func cisAudit(t *testing.T, s *cisServer, _ string) {
	features.Row(t, "F5", "the built-in policy: who did what is there; Secrets' and ConfigMaps' contents, tokens, heartbeats and events are not")
	s.h.Kubectl(t, "create", "secret", "generic", "cis-audit", "--from-literal=password="+cisMarker)
	s.h.Kubectl(t, "create", "configmap", "cis-audit", "--from-literal=text="+cisMarker)
	s.h.Kubectl(t, "get", "secret", "cis-audit", "-o", "yaml")
	s.h.Kubectl(t, "patch", "secret", "cis-audit", "-p", `{"stringData":{"more":"`+cisMarker+`"}}`)
	token := strings.TrimSpace(s.h.Kubectl(t, "create", "token", "default"))
	s.h.Kubectl(t, "exec", "box", "--", "true")
	s.h.Kubectl(t, "create", "namespace", "cis-audit")
	s.h.Kubectl(t, "create", "role", "cis-audit", "--verb=get", "--resource=pods")

	cluster.Wait(t, podTimeout, "the audit log to hold what was done", func() error {
		log, err := os.ReadFile(s.h.Path("/var/lib/mote/audit/audit.log"))
		if err != nil {
			return err
		}
		for what, secret := range map[string]string{"a Secret's or ConfigMap's contents": cisMarker, "a token": token} {
			if strings.Contains(string(log), secret) {
				t.Fatalf("the audit log holds %s", what)
			}
		}
		return wantAudited(t, string(log))
	})
}

func wantAudited(t *testing.T, log string) error {
	t.Helper()
	missing := map[string]string{ // the administrator's "verb resource", and its level
		"create secrets": "Metadata", "get secrets": "Metadata", "patch secrets": "Metadata", "create configmaps": "Metadata",
		"create serviceaccounts/token": "Metadata", "get pods/exec": "Metadata", "create namespaces": "Request", "create roles": "Request",
	}
	for line := range strings.Lines(log) {
		var e auditEvent
		if !strings.HasSuffix(line, "\n") {
			break // the server is still writing it
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("line of the audit log: %v: %s", err, line)
		}
		ref := e.ObjectRef
		resource := strings.TrimSuffix(ref.Resource+"/"+ref.Subresource, "/")
		noise := ref.Resource == "leases" || ref.Resource == "events" ||
			e.User.Username != "admin" && (e.Verb == "get" || e.Verb == "list" || e.Verb == "watch") && strings.HasPrefix(e.User.Username, "system:kube-")
		if noise || e.Level == "RequestResponse" || len(e.Response) > 0 {
			t.Errorf("the audit log holds %s", line)
		}
		if e.User.Username == "admin" && e.Level == missing[e.Verb+" "+resource] && (e.Level == "Request") == (len(e.Request) > 0) {
			delete(missing, e.Verb+" "+resource)
		}
	}
	if len(missing) > 0 {
		text, _ := json.Marshal(missing)
		return errors.New("it lacks " + string(text))
	}
	return nil
}
