package datastore_test

import (
	"testing"

	"github.com/mote-k8s/mote/datastore/storetest"
)

func TestSuiteOnSQLite(t *testing.T) {
	storetest.Run(t, openSQLite, nil)
}

func openSQLite(t testing.TB, dir string) (string, func()) {
	cfg := config(dir)
	cfg.Endpoint = "sqlite"
	d, stop := serveConfig(t, cfg)
	return d.Endpoint(), stop
}
