//go:build !cgo

package datastore_test

const otherSQLite = false
