package sql

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
)

// The drivers, by the names that users see.
const (
	driverSQLite   = "sqlite"
	driverPostgres = "postgres"
	driverMySQL    = "mysql"
	driverNATS     = "nats"
)

// Endpoint is the address of a store. It holds the password, if there is one; its String does not.
type Endpoint struct {
	driver string
	// dsn is the address in kine's format. It may hold a password.
	dsn   string
	where string
	path  string // SQLite's file
	tls   TLS
}

// String returns a text for users and logs: "postgres at 10.0.0.5:5432, database kubernetes".
func (e Endpoint) String() string { return e.driver + " at " + e.where }

// File returns the path of SQLite's file, or "" for a database server.
func (e Endpoint) File() string { return e.path }

// Parse checks and parses an endpoint: sqlite, sqlite:///FILE, postgres://, mysql:// or nats://.
// file is SQLite's file if the endpoint names none. Errors do not repeat the endpoint, which may
// hold a password.
func Parse(text, file string, files TLS) (Endpoint, error) {
	scheme, rest, _ := strings.Cut(text, "://")
	switch scheme {
	case "sqlite":
		return parseSQLite(rest, file, files)
	case "postgres", "postgresql":
		return parsePostgres(text, files)
	case "mysql":
		return parseMySQL(rest, files)
	case "nats":
		return parseNATS(text, files)
	}
	return Endpoint{}, errors.New("not one of sqlite, postgres://, mysql:// and nats://")
}

// sqliteOptions differ from kine's in synchronous: with FULL a commit is on the disk before it is
// acknowledged. They also leave out the additional work that kine does. At each start, kine's
// checkpoints wait for readers until the busy timeout, while SQLite's own checkpoints after 1,000
// pages do not wait. And at each start, kine's VACUUM writes the whole file again.
const sqliteOptions = "_journal_mode=WAL&_synchronous=FULL&_busy_timeout=30000&_txlock=immediate" +
	"&_kine_disable_compact_wal_checkpoint=1&_kine_disable_startup_vacuum=1"

func parseSQLite(path, file string, files TLS) (Endpoint, error) {
	if path == "" {
		path = file
	}
	switch {
	case files != TLS{}:
		return Endpoint{}, errors.New("sqlite has no server, so no TLS files can be given")
	case !filepath.IsAbs(path):
		return Endpoint{}, errors.New("sqlite's file is not an absolute path; sqlite:///var/lib/mote/kine.db is one")
	case strings.ContainsAny(path, "?#%"):
		return Endpoint{}, errors.New("sqlite's path must be without the characters ?, # and %; options are not taken")
	}
	path = filepath.Clean(path)
	return Endpoint{
		driver: driverSQLite, path: path, where: path,
		dsn: "sqlite://" + path + "?" + sqliteOptions,
	}, nil
}

// parsePostgres puts the TLS files into the URL, where kine also finds them.
func parsePostgres(text string, files TLS) (Endpoint, error) {
	const form = "not a URL such as postgres://USER:PASSWORD@HOST:5432/DATABASE; other characters than letters and digits in the password must be percent-encoded"
	u, err := url.Parse(text)
	if err != nil {
		return Endpoint{}, errors.New(form)
	}
	query := u.Query()
	for name, path := range map[string]string{"sslrootcert": files.CAFile, "sslcert": files.CertFile, "sslkey": files.KeyFile} {
		if path == "" {
			continue
		}
		if !query.Has(name) {
			query.Set(name, path)
		}
		if !query.Has("sslmode") {
			query.Set("sslmode", "verify-full")
		}
	}
	u.RawQuery = query.Encode()
	if u.Path == "" || u.Path == "/" {
		u.Path = "/kubernetes" // kine's default
	}
	config, err := pgx.ParseConfig(u.String())
	if err != nil {
		return Endpoint{}, fmt.Errorf("%s, and its TLS files readable", form)
	}
	return Endpoint{
		driver: driverPostgres, dsn: u.String(),
		where: fmt.Sprintf("%s:%d, database %s", config.Host, config.Port, strings.TrimPrefix(u.Path, "/")),
	}, nil
}

func parseMySQL(dsn string, files TLS) (Endpoint, error) {
	config, err := mysql.ParseDSN(dsn)
	if err != nil || !strings.Contains(dsn, "(") {
		return Endpoint{}, errors.New("not of the form mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE")
	}
	if config.DBName == "" {
		config.DBName = "kubernetes" // kine's default
	}
	return Endpoint{
		driver: driverMySQL, dsn: "mysql://" + dsn, tls: files,
		where: fmt.Sprintf("%s, database %s", config.Addr, config.DBName),
	}, nil
}

func parseNATS(text string, files TLS) (Endpoint, error) {
	var hosts []string
	for one := range strings.SplitSeq(text, ",") {
		u, err := url.Parse(one)
		if err != nil || u.Scheme != "nats" || u.Host == "" {
			return Endpoint{}, errors.New("not of the form nats://USER:PASSWORD@HOST:4222[,nats://HOST:4222...]?bucket=NAME")
		}
		hosts = append(hosts, u.Host)
	}
	return Endpoint{driver: driverNATS, dsn: text, tls: files, where: strings.Join(hosts, ",")}, nil
}
