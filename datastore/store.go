package datastore

import (
	"google.golang.org/grpc"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/etcd"
	"github.com/mote-k8s/mote/datastore/sql"
)

// store is an open store that mote serves.
type store interface {
	// register makes srv serve the store. The function that it returns ends the streams, which do
	// not end by themselves.
	register(srv *grpc.Server) (endStreams func())
	// failed is closed when the store cannot continue. failure then returns the reason.
	failed() <-chan struct{}
	failure() error
	Close() error
}

type boltStore struct {
	*bolt.Store
	path string
}

func (s boltStore) register(srv *grpc.Server) func() {
	inspector{s.Store, s.path}.register(srv)
	return etcd.Register(srv, s.Store).Stop
}
func (s boltStore) failed() <-chan struct{} { return s.Failed() }
func (s boltStore) failure() error          { return s.Failure() }

// kineStore never fails as a whole: while its server is unreachable each request fails, and
// requests succeed again once the server is back.
type kineStore struct{ *sql.Store }

// register has no streams to end: kine's bridge ends a stream only when its client goes, so the
// streams end with the gRPC server.
func (s kineStore) register(srv *grpc.Server) func() {
	s.Register(srv)
	return func() {}
}

func (kineStore) failed() <-chan struct{} { return nil }
func (kineStore) failure() error          { return nil }
