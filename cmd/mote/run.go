package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/machine"
	"github.com/mote-k8s/mote/machine/settings"
	"github.com/mote-k8s/mote/sandbox"
)

// Exit codes when the command did not run or was killed, as those of a shell.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignal        = 128 // plus the signal's number
)

// runOptions are the flags of run.
type runOptions struct {
	name           string
	list           bool
	dir            string
	artifacts      string
	publish        []string
	images         []string
	wait           string
	quiet, verbose bool
}

// newRunCommand returns the verb that runs a command against a throwaway cluster.
func newRunCommand(e *env) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] [-- COMMAND...]",
		Short: "Run a command, or a shell, against a throwaway cluster",
		Long: `Start a whole cluster in namespaces of its own, run COMMAND on this host with KUBECONFIG and PATH set
for it, and leave nothing behind when COMMAND ends, however it ends. Any number run side by side.
COMMAND comes after "--"; its exit code is the exit code. Without COMMAND, $SHELL is run, with "(mote:NAME)" before the
prompt of bash and sh; the name is in MOTE_SANDBOX_NAME for other prompts.

When COMMAND fails, the pods that are not Ready, Warning events and the end of failed containers' logs go to standard
error. --artifacts keeps all objects (Secrets without their values), events and logs in a directory, whatever the exit code.

Another terminal finds the cluster by its name: "mote run --list", "mote status --sandbox NAME", and so logs, image,
kubectl and ctr. Without --sandbox they take the only sandbox if this machine has no cluster of its own.

The cluster has no network but its own: images come from archives. This machine's configuration file and
variables do not apply to it; the flags below do.`,
		Example: `  mote run -- kubectl get nodes
  mote run --image app.tar -p 8080:30080 --artifacts out -- ./test.sh
  mote run --name dev --dir ./cluster
  mote kubectl --sandbox dev get pods`,
		GroupID: groupRun,
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // flags after COMMAND belong to COMMAND
	flags.StringVar(&o.name, "name", "", "`name` of the cluster for other terminals (default: its id)")
	flags.BoolVar(&o.list, "list", false, "list the clusters that run, and start none")
	flags.StringVar(&o.artifacts, "artifacts", "", "write objects, events and logs to this `directory` when COMMAND has ended")
	flags.StringVar(&o.dir, "dir", "", "keep the cluster's state in this `directory` for the next run (default: in memory)")
	flags.StringArrayVarP(&o.publish, "publish", "p", nil, "forward `[ADDRESS:]PORT:NODEPORT` of this host to the cluster; may be repeated")
	flags.StringArrayVar(&o.images, "image", nil, "load images from this archive `file` (docker save or OCI layout; plain, gzip or zstd); may be repeated")
	flags.StringVar(&o.wait, "wait", sandbox.WaitNode, "what COMMAND waits for (api, node)")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "print no progress")
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "print the cluster's log")
	serverArgs := settings.Forward(flags)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 && (cmd.ArgsLenAtDash() != 0 || o.list) {
			return misplacedCommand(cmd, args, o.list)
		}
		if err := machine.RequireRoot("run"); err != nil {
			return err
		}
		if o.list {
			return listSandboxes(e, o.quiet)
		}
		cfg, err := o.config(e)
		if err != nil {
			return err
		}
		cfg.Args = append([]string{"server"}, serverArgs()...)
		if o.dir == "" {
			cfg.Args = append(cfg.Args, "--snapshot-schedule=off") // the sandbox's memory disappears with it
		}
		return runSandbox(cmd.Context(), e, &o, cfg, args)
	}
	for name, values := range map[string][]string{"wait": {sandbox.WaitAPI, sandbox.WaitNode}, "publish": nil} {
		// It fails only for a flag that does not exist or that has a function already; neither can
		// happen here.
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err)
		}
	}
	return cmd
}

// config returns the sandbox that the flags describe.
func (o *runOptions) config(e *env) (sandbox.Config, error) {
	cfg := sandbox.Config{Name: o.name, Dir: o.dir, Images: o.images, Wait: o.wait}
	for _, path := range o.images {
		if err := agent.CheckArchive(path); err != nil {
			return cfg, fmt.Errorf("--image %s: %w", path, err)
		}
	}
	for _, text := range o.publish {
		p, err := sandbox.ParsePublish(text)
		if err != nil {
			return cfg, fmt.Errorf("--publish: %w", err)
		}
		cfg.Publish = append(cfg.Publish, p)
	}
	if o.verbose {
		cfg.Log = e.stderr
	}
	if !o.quiet {
		p := &progress{w: e.stderr, terminal: isTerminal(e.stderr) && !o.verbose}
		cfg.Report = p.report
	}
	return cfg, nil
}

// runSandbox runs args against the cluster that cfg describes. It checks both before it creates
// anything.
func runSandbox(ctx context.Context, e *env, o *runOptions, cfg sandbox.Config, args []string) error {
	interactive := len(args) == 0
	if interactive {
		args = []string{shell(e)}
	}
	if err := sandbox.LookPath(args[0]); err != nil {
		return notRunnable(args[0], err)
	}
	if err := checkArtifacts(o.artifacts); err != nil {
		return err
	}
	signals := make(chan os.Signal, 4) // a few, so that none is lost while another is handled
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)

	// COMMAND reaches the API on a port of the loopback.
	if err := machine.BypassLoopback(e.machine()); err != nil {
		return err
	}
	s, err := startSandbox(ctx, cfg, signals)
	if err != nil {
		return explain(e, err)
	}
	command := sandbox.Command{Args: args, Stdin: e.stdin, Stdout: e.stdout, Stderr: e.stderr}
	greet := interactive && isTerminal(e.stdin)
	if greet {
		if err := markPrompt(s, &command, e); err != nil {
			return errors.Join(err, s.Close())
		}
		if !o.quiet {
			fmt.Fprintln(e.stderr, greeting(s, cfg.Dir))
		}
	}
	code, err := s.Run(command, signals)
	if errors.Is(err, sandbox.ErrClusterEnded) {
		printLog(e.stderr, s.Log())
	}
	writeAftermath(ctx, e, s, o.artifacts, code != 0 && err == nil && !interactive && !interruptedCode(code), signals)
	err = errors.Join(err, s.Close())
	if greet && !o.quiet && err == nil {
		fmt.Fprintln(e.stderr, farewell(s, cfg.Dir))
	}
	if code == 0 && err == nil {
		return nil
	}
	return &exitError{code: max(code, 1), err: err}
}

// shell returns the command that runs when none is given.
func shell(e *env) string {
	if sh := e.getenv("SHELL"); sh != "" {
		return sh
	}
	return "/bin/sh"
}

// signalError is the error of a start that a signal interrupted.
type signalError struct{ signal syscall.Signal }

func (e *signalError) Error() string { return "interrupted (" + e.signal.String() + ")" }

// startSandbox starts a cluster unless a signal arrives first.
func startSandbox(ctx context.Context, cfg sandbox.Config, signals <-chan os.Signal) (*sandbox.Sandbox, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	started := make(chan struct{})
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case sig := <-signals:
			cancel(&signalError{sig.(syscall.Signal)})
		case <-started:
		}
	}()
	s, err := sandbox.Start(ctx, cfg)
	close(started)
	<-watching
	if interrupted := (*signalError)(nil); err == nil && errors.As(context.Cause(ctx), &interrupted) {
		return nil, errors.Join(interrupted, s.Close()) // the signal arrived at the very last moment
	}
	return s, err
}

// explain converts an error of the start into an error of the program, and shows the server's
// messages about it.
func explain(e *env, err error) error {
	var interrupted *signalError
	if errors.As(err, &interrupted) {
		return &exitError{code: exitSignal + int(interrupted.signal), err: err}
	}
	if start := (*sandbox.StartError)(nil); errors.As(err, &start) {
		printLog(e.stderr, start.Log)
	}
	return err
}

func printLog(w io.Writer, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(w, "The last lines of the cluster's log:\n  %s\n", strings.Join(lines, "\n  "))
}

func notRunnable(name string, err error) error {
	code := exitNotExecutable
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		code = exitNotFound
	}
	var found *exec.Error
	if errors.As(err, &found) {
		err = found.Err // without its name
	}
	return &exitError{code: code, err: fmt.Errorf("cannot run %s: %w", name, err)}
}

// progress shows the steps of a start: on a terminal a line with a tick or a cross for each step,
// elsewhere a plain line for each finished step.
type progress struct {
	w        io.Writer
	terminal bool
}

func (p *progress) report(s sandbox.Step) {
	took := s.Took.Round(10 * time.Millisecond)
	switch {
	case !s.Done && p.terminal:
		fmt.Fprintf(p.w, "   %s ...", s.Name)
	case !s.Done:
	case p.terminal && s.Err != nil:
		fmt.Fprintf(p.w, "\r\x1b[K ✗ %s\n", s.Name)
	case p.terminal:
		fmt.Fprintf(p.w, "\r\x1b[K ✓ %s (%s)\n", s.Name, took)
	case s.Err == nil:
		fmt.Fprintf(p.w, "%s (%s)\n", s.Name, took)
	}
}
