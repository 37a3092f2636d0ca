//go:build !cgo

package sql

import (
	"database/sql"

	_ "modernc.org/sqlite" // registers sqlite, the SQLite that kine takes without cgo: as mote is built
)

func openSQLite(path string) (*sql.DB, error) {
	return sql.Open("sqlite", "file://"+path+"?_pragma=busy_timeout(30000)&_pragma=synchronous(FULL)")
}
