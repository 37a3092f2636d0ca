//go:build cgo

package sql

import "database/sql"

// openSQLite opens a file in addition to kine. In a program with cgo, such as a test with the race
// detector, kine has registered another SQLite. openSQLite must use that one: two SQLite libraries
// in one process do not know of each other's locks, and the second removes files that the first
// still needs.
func openSQLite(path string) (*sql.DB, error) {
	return sql.Open("sqlite3", "file:"+path+"?_busy_timeout=30000&_synchronous=FULL")
}
