//go:build !cgo

package sql

import (
	"database/sql"

	// Registers sqlite, the SQLite that kine takes without cgo, which is how mote is built.
	_ "modernc.org/sqlite"
)

func openSQLite(path string) (*sql.DB, error) {
	return sql.Open("sqlite", "file://"+path+"?_pragma=busy_timeout(30000)&_pragma=synchronous(FULL)")
}
