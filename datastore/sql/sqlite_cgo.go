//go:build cgo

package sql

import "database/sql"

// openSQLite opens a file beside kine, which has registered another SQLite in a program with cgo, as tests with the race detector are. It must
// be the same one: two in a process know nothing of each other's locks, and the second takes away the files that the first still needs.
func openSQLite(path string) (*sql.DB, error) {
	return sql.Open("sqlite3", "file:"+path+"?_busy_timeout=30000&_synchronous=FULL")
}
