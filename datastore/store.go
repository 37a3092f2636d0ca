package datastore

import (
	"google.golang.org/grpc"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/etcd"
	"github.com/mote-k8s/mote/datastore/sql"
)

// store is an open store that we serve.
type store interface {
	// register makes srv serve it. What it returns ends the streams, which have no end of their own.
	register(srv *grpc.Server) (endStreams func())
	// failed is closed when the store can go on no more, for the reason that failure then returns.
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

// kineStore never fails as a whole: each request to a server that is gone fails, until it is there again.
type kineStore struct{ *sql.Store }

// register has no streams to end: kine's bridge looks at nothing but its client. They end with the gRPC server.
func (s kineStore) register(srv *grpc.Server) func() {
	s.Register(srv)
	return func() {}
}

func (kineStore) failed() <-chan struct{} { return nil }
func (kineStore) failure() error          { return nil }
