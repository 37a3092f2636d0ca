package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/pflag"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/internal/limit"
	"github.com/mote-k8s/mote/machine"
	"github.com/mote-k8s/mote/machine/settings"
)

// TestMain makes this test binary the program mote for the scripts below testdata, under each of
// its names, and four helper programs: two that get in its way, one that makes its keys, and one
// that writes into its store.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mote": main, "kubectl": main, "ctr": main,
		"listen": func() { os.Exit(listenMain(os.Args[1], os.Args[2:])) },
		"hold":   func() { os.Exit(holdMain(os.Args[1], os.Args[2:])) },
		"issue":  func() { os.Exit(issueMain(os.Args[1:])) },
		"put":    func() { os.Exit(putMain(os.Args[1], os.Args[2], os.Args[3])) },
	})
}

// TestScripts runs testdata/*.txtar. A script that could start a node runs in namespaces of its
// own.
func TestScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces and mounts")
	}
	testscript.Run(t, testscript.Params{
		Dir:                "testdata",
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			// Scripts that run as an unprivileged user need access to the program too.
			program, err := exec.LookPath("mote")
			if err != nil {
				return err
			}
			for _, dir := range []string{filepath.Dir(program), filepath.Dir(filepath.Dir(program))} {
				if err := os.Chmod(dir, 0o755); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

// listenMain implements the program "listen ADDRESS COMMAND...": it runs COMMAND while it listens.
func listenMain(address string, argv []string) int {
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, "listen:", err)
		return 2
	}
	defer l.Close()
	return runChild(argv)
}

// holdMain implements the program "hold DIR COMMAND...": it runs COMMAND while it holds the lock of
// the data directory.
func holdMain(dir string, argv []string) int {
	lock, err := machine.New(&settings.Settings{DataDir: dir}, machine.Env{}).HoldStore()
	if err != nil {
		fmt.Fprintln(os.Stderr, "hold:", err)
		return 2
	}
	defer lock.Close()
	return runChild(argv)
}

// issueMain implements the program "issue FLAG...": it creates the files that "mote server FLAG..."
// creates before it starts any component.
func issueMain(args []string) int {
	fs := pflag.NewFlagSet("issue", pflag.ContinueOnError)
	loader := settings.Register(fs, "server")
	err := fs.Parse(args)
	var m *machine.Machine
	if err == nil {
		m, err = loadSettings(&env{getenv: os.Getenv}, loader)
	}
	if err == nil {
		m, _, err = m.Named()
	}
	var store *datastore.Datastore
	if err == nil {
		store, err = m.OpenStore(m.DatastoreSocket())
	}
	if err == nil {
		_, err = m.Prepare(store, limit.New(), 0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "issue:", err)
		return 2
	}
	return 0
}

// putMain implements the program "put ENDPOINT KEY VALUE", which waits for the endpoint.
func putMain(endpoint, key, value string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := machine.WithConnection(endpoint, func(conn *grpc.ClientConn) error {
		_, err := etcdserverpb.NewKVClient(conn).Put(ctx,
			&etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value)}, grpc.WaitForReady(true))
		return err
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "put:", err)
		return 2
	}
	return 0
}

func runChild(argv []string) int {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	return cmd.ProcessState.ExitCode()
}
