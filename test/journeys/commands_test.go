package journeys

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

const (
	// waitTimeout is the default of wait-until: restarts with back-off take some 30 s, and the
	// scripts share two cores.
	waitTimeout = 2 * time.Minute
	// waitInterval is the pause between two checks; each starts a kubectl, 0.2 s of a processor.
	waitInterval = time.Second
)

// session is the run of one script.
type session struct {
	t      *testing.T
	host   *cluster.Host
	server *cluster.Server // nil until a script of testdata/alone starts it
	addons []string
	// endCheck ends the check of the last row command.
	endCheck func(passed, skipped bool)
}

// sessionKey is the key of a script's session among testscript's values.
type sessionKey struct{}

// setUp gives the script its environment and, if a server already runs, its namespace.
func (s *session) setUp(env *testscript.Env) error {
	env.Values[sessionKey{}] = s
	env.Setenv("PATH", binDir(s.host)+":"+env.Getenv("PATH"))
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("KUBECONFIG", filepath.Join(env.WorkDir, ".kube", "config"))
	env.Setenv("ARCHIVES", s.host.Dir)
	// The repository, under its path in the host.
	env.Setenv("MACHINE", filepath.Join("/.machine", cluster.Root()))
	env.Defer(func() {
		if s.endCheck != nil {
			s.endCheck(!s.t.Failed(), s.t.Skipped())
		}
	})
	if s.server == nil {
		return nil
	}
	namespace := strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")
	if err := s.makeNamespace(namespace); err != nil {
		return err
	}
	env.Setenv("NS", namespace)
	return s.writeKubeconfig(filepath.Join(env.WorkDir, ".kube"), namespace)
}

// writeKubeconfig gives the script an admin kubeconfig with the script's own namespace.
func (s *session) writeKubeconfig(dir, namespace string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	content, err := os.ReadFile(s.host.Path(cluster.Kubeconfig))
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "config")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return err
	}
	s.host.Kubectl(s.t, "--kubeconfig="+file, "config", "set-context", "--current", "--namespace="+namespace)
	return nil
}

// commands returns the scripts' own commands:
//
//	kubectl ARG...              mote's kubectl
//	mote, curl, helm ARG...     on the host; curl prints only errors
//	host COMMAND...             any other command on the host
//	row ID WHAT                 the lines that follow prove the feature ID
//	wait-until RE COMMAND...    again and again, until it succeeds and its output matches
//	set NAME COMMAND...         puts its output into a variable
//	server [ARG...]             starts a server and waits for its node (testdata/alone)
//	server-ends                 waits for the server to end
//
// wait-until and set accept the first four as COMMAND.
func commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"kubectl":     program("kubectl"),
		"mote":        program("mote"),
		"curl":        program("curl"),
		"helm":        program("helm"),
		"host":        program("host"),
		"row":         row,
		"wait-until":  waitUntil,
		"set":         set,
		"server":      startServer,
		"server-ends": serverEnds,
	}
}

func sessionOf(ts *testscript.TestScript) *session { return ts.Value(sessionKey{}).(*session) }

// program returns a command that is exec with the program's name.
func program(name string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		err := ts.Exec(name, args...)
		if neg && err == nil {
			ts.Fatalf("%s succeeded, which it should not", name)
		}
		if !neg && err != nil {
			ts.Fatalf("%s: %v", name, err)
		}
	}
}

func row(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: row ID WHAT")
	}
	s := sessionOf(ts)
	if s.endCheck != nil {
		s.endCheck(true, false)
	}
	s.endCheck = features.Begin(s.t, args[0], strings.Join(args[1:], " "))
}

func waitUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: wait-until RE COMMAND...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(sessionOf(ts).t.Context(), waitTimeout)
	defer cancel()
	tick := time.NewTicker(waitInterval)
	defer tick.Stop()
	for {
		stdout, stderr, err := run(ctx, ts, args[1:])
		// The last newline is removed, or an empty line after it would match too: ^$ is for a
		// command that prints nothing.
		if err == nil && want.MatchString(strings.TrimSuffix(stdout, "\n")) {
			fmt.Fprint(ts.Stdout(), stdout)
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("waited %v for %q; last: %v\n%s%s", waitTimeout, args[0], err, stdout, stderr)
		case <-tick.C:
		}
	}
}

func set(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: set NAME COMMAND...")
	}
	stdout, stderr, err := run(sessionOf(ts).t.Context(), ts, args[1:])
	if err != nil {
		ts.Fatalf("%v: %s", err, stderr)
	}
	ts.Setenv(args[0], strings.TrimSpace(stdout))
}

// run runs kubectl, mote, curl, helm or host as exec does, without a trace in the script's log.
func run(ctx context.Context, ts *testscript.TestScript, args []string) (stdout, stderr string, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(binDir(sessionOf(ts).host), args[0]), args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, variable := range []string{"PATH", "HOME", "KUBECONFIG"} {
		cmd.Env = append(cmd.Env, variable+"="+ts.Getenv(variable))
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func startServer(ts *testscript.TestScript, neg bool, args []string) {
	s := sessionOf(ts)
	if neg {
		ts.Fatalf("a server that does not start is for the e2e tests")
	}
	first := s.server == nil
	s.server = s.host.StartServer(s.t, args...)
	s.server.WaitReady(s.t)
	if first {
		ts.Check(s.makeNamespace("alone"))
		ts.Setenv("NS", "alone")
		ts.Check(s.writeKubeconfig(filepath.Dir(ts.Getenv("KUBECONFIG")), "alone"))
	}
}

func serverEnds(ts *testscript.TestScript, _ bool, _ []string) {
	s := sessionOf(ts)
	if code := s.server.WaitEnd(s.t, cluster.StopTimeout); code != 0 {
		ts.Fatalf("the server ended with exit code %d", code)
	}
}
