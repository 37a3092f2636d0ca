package sql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib" // registers pgx
	"github.com/k3s-io/kine/pkg/server"
)

// Raise creates an empty store whose next revision is above revision, with its history compacted. A
// store that already holds anything stays unchanged. Raise does nothing for NATS, where only writes
// raise the revision.
func Raise(ctx context.Context, e Endpoint, revision int64) error {
	if e.driver == driverNATS {
		return nil
	}
	// kine creates the table. It must not start to use it.
	made, err := open(ctx, e, Options{}, func(server.Backend, context.Context) error { return nil })
	if err != nil {
		return err
	}
	if err := made.Close(); err != nil {
		return err
	}
	db, err := openDB(e)
	if err != nil {
		return err
	}
	// kine's revisions are the IDs of its rows. A row as kine uses it to fill gaps gets the wanted
	// ID. kine keeps the revision of its last compaction as the previous revision of the row
	// compact_rev_key, the first row of a store.
	statements := []string{
		"DELETE FROM kine WHERE name = 'compact_rev_key'",
		fmt.Sprintf("INSERT INTO kine(name, created, deleted, create_revision, prev_revision, lease, value) VALUES('compact_rev_key', 1, 0, 0, %d, 0, '')", revision),
		fmt.Sprintf("INSERT INTO kine(id, name, created, deleted, create_revision, prev_revision, lease) VALUES(%d, 'gap-%d', 0, 1, 0, 0, 0)", revision, revision),
	}
	if e.driver == driverPostgres {
		statements = append(statements, fmt.Sprintf("SELECT setval('kine_id_seq', %d)", revision))
	}
	return errors.Join(raise(ctx, db, revision, statements), db.Close())
}

func raise(ctx context.Context, db *sql.DB, revision int64, statements []string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("raise the revision: %w", err)
	}
	defer tx.Rollback() // does nothing after a commit
	var last int64
	if err := tx.QueryRowContext(ctx, "SELECT COALESCE(MAX(id), 0) FROM kine").Scan(&last); err != nil {
		return fmt.Errorf("read the revision: %w", err)
	}
	var taken int64
	if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM kine WHERE name <> 'compact_rev_key' AND name <> '/registry/health'").Scan(&taken); err != nil {
		return fmt.Errorf("look at the database: %w", err)
	}
	if last >= revision || taken > 0 {
		return nil
	}
	for _, s := range statements {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("raise the revision: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("raise the revision: %w", err)
	}
	return nil
}

// openDB opens the database directly, in addition to kine.
func openDB(e Endpoint) (*sql.DB, error) {
	switch e.driver {
	case driverPostgres:
		return sql.Open("pgx", e.dsn)
	case driverMySQL:
		config, err := mysqlConfig(e)
		if err != nil {
			return nil, err
		}
		connector, err := mysql.NewConnector(config)
		if err != nil {
			return nil, err
		}
		return sql.OpenDB(connector), nil
	default:
		path, _, _ := strings.Cut(strings.TrimPrefix(e.dsn, "sqlite://"), "?")
		return openSQLite(path)
	}
}
