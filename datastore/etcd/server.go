// Package etcd serves the subset of etcd's v3 protocol that Kubernetes uses, from a bolt.Store.
//
// It owns the wire: messages, error codes, streams. It keeps no data and makes no decisions, but
// leaves both to the store. It refuses requests that Kubernetes does not use (transactions over
// several keys, sorted lists, watch filters, users, members) with codes.Unimplemented and the name
// of the feature, and never answers them wrongly.
//
// Enter through Register, and call Stop before the gRPC server is stopped: watches do not end by
// themselves. Everything is safe for concurrent use.
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
	// Version is the version in the answer of Status. From it the apiserver concludes that watches
	// support progress requests (since 3.5.13), which consistent reads from its cache need.
	Version = "3.6.13"
	// MaxRequest is the largest write in bytes: etcd's default.
	MaxRequest = 1536 << 10
	// envelope is the number of bytes that etcd adds to a request of about that size before it
	// checks the limit: number and kind of the request.
	envelope = 18
)

// Server serves the protocol for one store.
type Server struct {
	store *bolt.Store
	// stopping ends with Stop; every stream ends with it.
	stopping context.Context
	stop     context.CancelFunc
	// lists has the buffers into which lists are encoded.
	lists buffers
}

// Register makes srv serve store. srv must have Codec.
func Register(srv *grpc.Server, store *bolt.Store) *Server {
	s := &Server{store: store}
	s.stopping, s.stop = context.WithCancel(context.Background())
	srv.RegisterService(kvService(), kv{Server: s})
	etcdserverpb.RegisterWatchServer(srv, watch{Server: s})
	etcdserverpb.RegisterLeaseServer(srv, lease{Server: s})
	etcdserverpb.RegisterMaintenanceServer(srv, &maintenance{Server: s})
	return s
}

// Stop ends all streams. Later streams end at once.
func (s *Server) Stop() { s.stop() }

func header(revision int64) *etcdserverpb.ResponseHeader {
	return &etcdserverpb.ResponseHeader{Revision: revision}
}

func (s *Server) header() *etcdserverpb.ResponseHeader { return header(s.store.Revision()) }

// unserved returns the error for a request outside the subset.
func unserved(what string) error {
	return status.Errorf(codes.Unimplemented,
		"%s: not served; this datastore speaks the part of etcd's protocol that Kubernetes uses", what)
}

// protocolError translates an error of the store to etcd's error.
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
		// The code is that of etcd's own "corrupt cluster"; the message says how to repair it.
		return status.Error(codes.DataLoss, err.Error()+"; restart mote, which repairs its datastore or says what to do")
	case errors.Is(err, bolt.ErrClosed):
		return rpctypes.ErrGRPCStopped
	case errors.Is(err, bolt.ErrInvalidKey):
		return status.Error(codes.InvalidArgument, err.Error())
	case status.Code(err) != codes.Unknown:
		return err // it is an error of the protocol already
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}
