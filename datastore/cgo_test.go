//go:build cgo

package datastore_test

// otherSQLite: with cgo, which the race detector needs, kine takes another SQLite than the one that we ship.
const otherSQLite = true
