// Package servers starts the servers that can keep a datastore: Debian's packages of PostgreSQL,
// MariaDB, NATS and etcd, on loopback, each with its own directory, user and password. They end
// with their test.
//
// Each function returns endpoints in mote's format. This package does not import mote's own
// packages.
package servers

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	account "os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Password is the password of all servers. It has a character that is special in URLs.
const Password = "se@cret"

// urlPassword is Password in a URL.
const urlPassword = "se%40cret"

// prepareTimeout is for a program that creates a server's directory: initdb takes seconds on a slow
// disk.
const prepareTimeout = time.Minute

// Place is the environment in which a server runs.
type Place struct {
	// Dir is the directory for its files.
	Dir string
	// Start starts its programs; nil starts them on this machine, cluster.Host.Start in a private
	// host.
	Start func(*exec.Cmd) error
}

// folder makes a directory that the user may write to.
func (p Place) folder(t testing.TB, name, user string) string {
	t.Helper()
	dir := filepath.Join(p.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// Only root may enter the test's directory, and the directory in which the testing package made
	// it.
	for _, above := range []string{p.Dir, filepath.Dir(p.Dir)} {
		if err := os.Chmod(above, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("chown", user+":", dir).CombinedOutput(); err != nil {
		t.Fatalf("chown %s %s: %v: %s; scripts/test engines installs the servers", user, dir, err, out)
	}
	return dir
}

// command returns a command of the user. Its output goes to log.
func (p Place) command(user, log string, args ...string) (*exec.Cmd, error) {
	who, err := account.Lookup(user)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command("setpriv", append([]string{"--reuid=" + who.Uid, "--regid=" + who.Gid, "--clear-groups", "--"}, args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", f, f
	start := p.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	return cmd, start(cmd)
}

// prepare runs a command to its end.
func (p Place) prepare(t testing.TB, user string, args ...string) {
	t.Helper()
	log := filepath.Join(p.Dir, "prepare.log")
	cmd, err := p.command(user, log, args...)
	if err == nil {
		giveUp := time.AfterFunc(prepareTimeout, func() { _ = cmd.Process.Kill() })
		err = cmd.Wait()
		giveUp.Stop()
	}
	if err != nil {
		text, _ := os.ReadFile(log)
		t.Fatalf("%s: %v: %s", args[0], err, text)
	}
}

// Server is a running server.
type Server struct {
	place Place
	user  string
	log   string
	args  []string
	stop  syscall.Signal
	cmd   *exec.Cmd
}

// serve starts a server. It does not wait until the server answers, because mote's own wait is
// under test.
func (p Place) serve(t testing.TB, user string, stop syscall.Signal, args ...string) *Server {
	t.Helper()
	s := &Server{place: p, user: user, log: filepath.Join(p.Dir, filepath.Base(args[0])+".log"), args: args, stop: stop}
	s.Start(t)
	t.Cleanup(func() {
		s.Stop(t)
		if text, err := os.ReadFile(s.log); t.Failed() && err == nil {
			t.Logf("end of %s:\n%s", s.log, text[max(0, len(text)-4000):])
		}
	})
	return s
}

// Start starts the server again after Stop.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	var err error
	if s.cmd, err = s.place.command(s.user, s.log, s.args...); err != nil {
		t.Fatalf("start %s: %v", s.args[0], err)
	}
}

// Stop ends the server, if it runs.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(s.stop)
	giveUp := time.AfterFunc(prepareTimeout, func() { _ = s.cmd.Process.Kill() })
	defer giveUp.Stop()
	_ = s.cmd.Wait() // the signal ends it
	s.cmd = nil
}

// Postgres starts PostgreSQL. The endpoint is without a database's name:
// "postgres://mote:PASSWORD@127.0.0.1:PORT/".
func Postgres(t testing.TB, p Place) (*Server, string) {
	t.Helper()
	const user = "postgres"
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(found) == 0 {
		t.Fatalf("PostgreSQL is not installed; scripts/test engines does that: %v", err)
	}
	bin, dir, port := found[len(found)-1], p.folder(t, "postgres", user), freePort(t)
	password := filepath.Join(dir, "password")
	write(t, password, Password)
	p.prepare(t, "root", "chown", user, password)
	p.prepare(t, user, bin+"/initdb", "--pgdata="+dir+"/data", "--username=mote", "--pwfile="+password,
		"--auth=scram-sha-256", "--no-locale", "--encoding=UTF8")
	// SIGINT does not wait for clients.
	s := p.serve(t, user, syscall.SIGINT, bin+"/postgres", "-D", dir+"/data", "-h", "127.0.0.1", "-p", port, "-k", dir)
	return s, fmt.Sprintf("postgres://mote:%s@127.0.0.1:%s/", urlPassword, port)
}

// MySQL starts MariaDB. The endpoint is without a database's name:
// "mysql://mote:PASSWORD@tcp(127.0.0.1:PORT)/".
func MySQL(t testing.TB, p Place) (*Server, string) {
	t.Helper()
	const user = "mysql"
	dir, port := p.folder(t, "mysql", user), freePort(t)
	begin := filepath.Join(dir, "begin.sql")
	write(t, begin, "CREATE USER IF NOT EXISTS mote@'%' IDENTIFIED BY '"+Password+"';\nGRANT ALL ON *.* TO mote@'%';\n")
	p.prepare(t, "root", "chown", user, begin)
	p.prepare(t, user, "mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db",
		"--datadir="+dir+"/data")
	s := p.serve(t, user, syscall.SIGTERM, "mariadbd", "--no-defaults", "--datadir="+dir+"/data", "--socket="+dir+"/socket",
		"--pid-file="+dir+"/pid", "--bind-address=127.0.0.1", "--port="+port, "--skip-name-resolve", "--init-file="+begin)
	return s, fmt.Sprintf("mysql://mote:%s@tcp(127.0.0.1:%s)/", Password, port)
}

// NATS starts a NATS server with JetStream: program, or Debian's if that is empty. The endpoint is
// "nats://mote:PASSWORD@127.0.0.1:PORT".
func NATS(t testing.TB, p Place, program string) (*Server, string) {
	t.Helper()
	const user = "nobody"
	if program == "" {
		program = "nats-server"
	}
	dir, port := p.folder(t, "nats", user), freePort(t)
	s := p.serve(t, user, syscall.SIGTERM, program, "--addr=127.0.0.1", "--port="+port, "--user=mote", "--pass=secret",
		"--jetstream", "--store_dir="+dir)
	return s, "nats://mote:secret@127.0.0.1:" + port
}

// Etcd starts an etcd: program, or Debian's if that is empty. It accepts only clients with a
// certificate of its authority.
func Etcd(t testing.TB, p Place, program string) (*Server, string, Certificates) {
	t.Helper()
	const user = "nobody"
	if program == "" {
		program = "etcd"
	}
	dir := p.folder(t, "etcd", user)
	certs := makeCertificates(t, dir)
	p.prepare(t, "root", "chown", "-R", user, dir)
	client, peer := "https://127.0.0.1:"+freePort(t), "http://127.0.0.1:"+freePort(t)
	s := p.serve(t, user, syscall.SIGTERM, program, "--data-dir="+dir+"/data", "--log-level=error",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer,
		"--client-cert-auth", "--trusted-ca-file="+certs.CA, "--cert-file="+certs.serverCert, "--key-file="+certs.serverKey)
	return s, client, certs
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// freePort returns a port that is free on this machine, and therefore also in a private host.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// Versions returns the versions of the servers, for the log of a test.
func Versions() string {
	var b strings.Builder
	for _, args := range [][]string{
		{"sh", "-c", "/usr/lib/postgresql/*/bin/postgres --version"}, {"mariadbd", "--version"}, {"nats-server", "--version"}, {"etcd", "--version"},
	} {
		out, err := exec.Command(args[0], args[1:]...).Output()
		line, _, _ := bytes.Cut(out, []byte("\n"))
		fmt.Fprintf(&b, "%s", line)
		if err != nil {
			fmt.Fprintf(&b, " (%v)", err)
		}
		b.WriteString("; ")
	}
	return strings.TrimSuffix(b.String(), "; ")
}
