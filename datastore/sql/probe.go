package sql

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrRefused is the error of a server that answers and refuses mote: a retry does not help.
var ErrRefused = errors.New("refused")

// probeTimeout limits one probe: a server that is up answers in milliseconds, and a packet that is
// dropped gets no answer.
const probeTimeout = 5 * time.Second

// Probe checks once whether the server would accept mote. A missing database is no error, because
// Open creates it.
func Probe(ctx context.Context, e Endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	switch e.driver {
	case driverPostgres:
		return probePostgres(ctx, e)
	case driverMySQL:
		return probeMySQL(ctx, e)
	case driverNATS:
		return probeNATS(ctx, e)
	}
	return nil
}

func probePostgres(ctx context.Context, e Endpoint) error {
	conn, err := pgx.Connect(ctx, e.dsn)
	var answer *pgconn.PgError
	switch {
	case err == nil:
		return conn.Close(ctx)
	case !errors.As(err, &answer):
		return err
	case answer.Code == pgerrcode.InvalidCatalogName:
		return nil
	case answer.Code == pgerrcode.CannotConnectNow, answer.Code == pgerrcode.TooManyConnections:
		return answer
	}
	return fmt.Errorf("%w: %w", ErrRefused, answer)
}

// Error numbers of MySQL.
const (
	mysqlTooManyConnections = 1040
	mysqlUnknownDatabase    = 1049
)

func probeMySQL(ctx context.Context, e Endpoint) error {
	config, err := mysqlConfig(e)
	if err != nil {
		return err
	}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return err
	}
	conn, err := connector.Connect(ctx)
	var answer *mysql.MySQLError
	switch {
	case err == nil:
		return conn.Close()
	case !errors.As(err, &answer), answer.Number == mysqlTooManyConnections:
		return err
	case answer.Number == mysqlUnknownDatabase:
		return nil
	}
	return fmt.Errorf("%w: %w", ErrRefused, answer)
}

func mysqlConfig(e Endpoint) (*mysql.Config, error) {
	config, err := mysql.ParseDSN(strings.TrimPrefix(e.dsn, "mysql://"))
	if err != nil {
		return nil, errors.New("not a MySQL endpoint") // Parse has checked it
	}
	if config.TLS, err = e.tls.kine().ClientConfig(); err != nil {
		return nil, fmt.Errorf("%w: TLS files: %w", ErrRefused, err)
	}
	if config.DBName == "" {
		config.DBName = "kubernetes"
	}
	config.Logger = &mysql.NopLogger{}
	return config, nil
}

func probeNATS(ctx context.Context, e Endpoint) error {
	first, err := url.Parse(strings.Split(e.dsn, ",")[0])
	if err != nil {
		return errors.New("not a NATS endpoint") // Parse has checked it
	}
	options := []nats.Option{nats.Timeout(probeTimeout), nats.MaxReconnects(0)}
	// Read the credentials as kine does.
	if user, password, both := strings.Cut(first.User.String(), ":"); both {
		options = append(options, nats.UserInfo(user, password))
	} else if user != "" {
		options = append(options, nats.Token(user))
	}
	if file := first.Query().Get("credsFile"); file != "" {
		options = append(options, nats.UserCredentials(file))
	}
	if e.tls.CAFile != "" {
		options = append(options, nats.RootCAs(e.tls.CAFile))
	}
	if e.tls.CertFile != "" {
		options = append(options, nats.ClientCert(e.tls.CertFile, e.tls.KeyFile))
	}
	conn, err := nats.Connect("nats://"+strings.ReplaceAll(e.where, ",", ",nats://"), options...)
	if errors.Is(err, nats.ErrAuthorization) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	if _, err = stream.AccountInfo(ctx); errors.Is(err, jetstream.ErrJetStreamNotEnabled) {
		return fmt.Errorf("%w: the server is without JetStream; start it with -js", ErrRefused)
	}
	return err
}
