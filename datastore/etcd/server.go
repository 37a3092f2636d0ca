// Package etcd serves the part of etcd's v3 protocol that Kubernetes uses, from a bolt.Store.
//
// It owns the wire: messages, error codes, streams. It keeps no data and makes no decisions; whatever
// needs one goes to the store. What Kubernetes does not use (transactions over several keys, sorted
// lists, watch filters, users, members) is refused with codes.Unimplemented and by name, never
// answered wrongly.
//
// Enter through Register, and call Stop before the gRPC server is stopped: watches have no end of their
// own. Everything is safe for concurrent use.
package etcd

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/bolt/format"
)

const (
	// Version is what Status answers. The apiserver derives from it whether watches can be asked for
	// their progress (3.5.13), which consistent reads from its cache need.
	Version = "3.6.13"
	// MaxRequest is the largest write in bytes: etcd's default.
	MaxRequest = 1536 << 10
	// envelope is what etcd adds to a request of about that size before it compares: number and kind of the request.
	envelope = 18
)

// Server is the protocol's face of one store.
type Server struct {
	store *bolt.Store
	// stopping ends with Stop; every stream ends with it.
	stopping context.Context
	stop     context.CancelFunc
	// lists are what lists are encoded into.
	lists buffers
}

// Register makes srv, which must have Codec, serve store.
func Register(srv *grpc.Server, store *bolt.Store) *Server {
	s := &Server{store: store}
	s.stopping, s.stop = context.WithCancel(context.Background())
	srv.RegisterService(kvService(), kv{Server: s})
	etcdserverpb.RegisterWatchServer(srv, watch{Server: s})
	etcdserverpb.RegisterLeaseServer(srv, lease{Server: s})
	etcdserverpb.RegisterMaintenanceServer(srv, &maintenance{Server: s})
	return s
}

// Stop ends all streams, and those that begin after it.
func (s *Server) Stop() { s.stop() }

func header(revision int64) *etcdserverpb.ResponseHeader {
	return &etcdserverpb.ResponseHeader{Revision: revision}
}

func (s *Server) header() *etcdserverpb.ResponseHeader { return header(s.store.Revision()) }

// unserved refuses what is outside the subset.
func unserved(what string) error {
	return status.Errorf(codes.Unimplemented,
		"%s: not served; this datastore speaks the part of etcd's protocol that Kubernetes uses", what)
}

// protocolError says in etcd's words what the store said.
func protocolError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case errors.Is(err, bolt.ErrCompacted):
		return rpctypes.ErrGRPCCompacted
	case errors.Is(err, bolt.ErrFutureRevision):
		return rpctypes.ErrGRPCFutureRev
	case errors.Is(err, bolt.ErrNoSpace):
		return rpctypes.ErrGRPCNoSpace
	case errors.Is(err, bolt.ErrTooLarge):
		return rpctypes.ErrGRPCRequestTooLarge
	case errors.Is(err, bolt.ErrLeaseNotFound):
		return rpctypes.ErrGRPCLeaseNotFound
	case errors.Is(err, bolt.ErrLeaseExists):
		return rpctypes.ErrGRPCLeaseExist
	case errors.Is(err, format.ErrDamaged):
		// The code of etcd's own "corrupt cluster", with what helps here.
		return status.Error(codes.DataLoss, err.Error()+"; restart mote, which repairs its datastore or says what to do")
	case errors.Is(err, bolt.ErrClosed):
		return rpctypes.ErrGRPCStopped
	case errors.Is(err, bolt.ErrInvalidKey):
		return status.Error(codes.InvalidArgument, err.Error())
	case status.Code(err) != codes.Unknown:
		return err // it is the protocol's own
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}
