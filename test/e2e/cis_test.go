package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/mote-k8s/mote/test/cis"
	"github.com/mote-k8s/mote/test/cluster"
)

// cisServer is a running server that is checked against the controls of the CIS benchmark. It runs
// a pod named box.
type cisServer struct {
	h       *cluster.Host
	admin   *http.Client // with the admin client certificate
	flags   map[string]map[string]string
	kubelet map[string]any
}

// checkCIS checks a running server for every control with one of the answers:
// test/cis/controls.yaml has the conditions.
func checkCIS(t *testing.T, h *cluster.Host, answers ...string) {
	s := newCISServer(t, h)
	sections, err := cis.Sections()
	if err != nil {
		t.Fatal(err)
	}
	for _, section := range sections {
		for _, control := range section.Controls {
			if !slices.Contains(answers, control.Answer) {
				continue
			}
			t.Run(control.ID, func(t *testing.T) {
				for _, check := range control.Checks() {
					s.check(t, check)
				}
			})
		}
	}
}

func newCISServer(t *testing.T, h *cluster.Host) *cisServer {
	config, err := h.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	admin, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	admin.Timeout = 30 * time.Second
	s := &cisServer{h: h, admin: admin, flags: map[string]map[string]string{}}
	for component, url := range map[string]string{
		"kube-apiserver":          "https://127.0.0.1:6443/flagz",
		"kube-controller-manager": "https://127.0.0.1:10257/flagz",
		"kube-scheduler":          "https://127.0.0.1:10259/flagz",
	} {
		s.flags[component] = parseFlags(t, s.get(t, url))
	}
	name := h.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	var configz map[string]map[string]any
	if err := json.Unmarshal([]byte(h.Kubectl(t, "get", "--raw", "/api/v1/nodes/"+name+"/proxy/configz")), &configz); err != nil {
		t.Fatal(err)
	}
	if s.kubelet = configz["kubeletconfig"]; s.kubelet == nil {
		t.Fatalf("configz has no kubeletconfig: %v", configz)
	}
	return s
}

// get requests a URL as the administrator.
func (s *cisServer) get(t *testing.T, url string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", flagsForm+", */*;q=0.1")
	status, body := do(t, s.admin, request)
	if status != http.StatusOK {
		t.Fatalf("%s: status %d: %s", url, status, body)
	}
	return body
}

// flagsForm is the machine-readable form of flagz. The text form changes its separators on purpose,
// from one process to the next.
const flagsForm = "application/json;as=Flagz;g=config.k8s.io;v=v1beta1"

// parseFlags reads a page of flagz.
func parseFlags(t *testing.T, page string) map[string]string {
	t.Helper()
	var parsed struct{ Flags map[string]string }
	if err := json.Unmarshal([]byte(page), &parsed); err != nil || len(parsed.Flags) == 0 {
		t.Fatalf("read flagz: %v: %.200s", err, page)
	}
	return parsed.Flags
}

// check checks one condition; controls.yaml has its grammar.
func (s *cisServer) check(t *testing.T, words []string) {
	t.Helper()
	switch words[0] {
	case "flag":
		value, found := s.flags[words[1]][words[2]]
		if !found {
			t.Fatalf("%s shows no flag %s among %v", words[1], words[2], s.flags[words[1]])
		}
		compare(t, words[1]+" --"+words[2], value, words[3:])
	case "config":
		compare(t, "the kubelet's "+words[1], configValue(s.kubelet, words[1]), words[2:])
	case "file":
		s.checkFiles(t, words[1], words[2])
	case "test":
		test := cisTests()[words[1]]
		if test == nil {
			t.Fatalf("there is no test %s", words[1])
		}
		test(t, s, strings.Join(words[2:], " "))
	default:
		t.Fatalf("unknown check %v", words)
	}
}

// compare checks a value against the rest of a condition.
func compare(t *testing.T, what, value string, wanted []string) {
	t.Helper()
	argument := strings.Join(wanted[1:], " ")
	items := strings.Split(strings.Trim(value, "[]"), ",")
	good := false
	switch wanted[0] {
	case "set":
		good = value != ""
	case "unset":
		good = value == ""
	case "is":
		good = value == argument
	case "has":
		good = slices.Contains(items, argument)
	case "lacks":
		good = !slices.Contains(items, argument)
	}
	if !good {
		t.Errorf("%s is %q, want it: %s", what, value, strings.Join(wanted, " "))
	}
}

// configValue finds a value by its path with dots, "" if there is none.
func configValue(from map[string]any, path string) string {
	var value any = from
	for key := range strings.SplitSeq(path, ".") {
		level, _ := value.(map[string]any)
		value = level[key]
	}
	if value == nil {
		return ""
	}
	return fmt.Sprint(value)
}

// checkFiles checks that every file of the pattern belongs to root and has at most the mode.
func (s *cisServer) checkFiles(t *testing.T, pattern, mode string) {
	t.Helper()
	most, err := strconv.ParseUint(mode, 8, 32)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(s.h.Path(strings.ReplaceAll(pattern, "$D", "/var/lib/mote")))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no file is called %s: %v", pattern, err)
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		owner := info.Sys().(*syscall.Stat_t)
		if info.Mode().Perm()&^fs.FileMode(most) != 0 || owner.Uid != 0 || owner.Gid != 0 {
			t.Errorf("%s has mode %o and owner %d:%d, want at most %s and root's", path, info.Mode().Perm(), owner.Uid, owner.Gid, mode)
		}
	}
}
