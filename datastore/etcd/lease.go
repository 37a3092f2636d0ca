package etcd

import (
	"context"
	"errors"
	"io"
	"math"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/mote-k8s/mote/datastore/bolt"
)

// maxTTL is etcd's limit, in seconds.
const maxTTL = 9_000_000_000

type lease struct{ *Server }

var _ etcdserverpb.LeaseServer = lease{}

// LeaseGrant creates a lease of at least one second.
func (s lease) LeaseGrant(ctx context.Context, r *etcdserverpb.LeaseGrantRequest) (*etcdserverpb.LeaseGrantResponse, error) {
	if r.TTL > maxTTL {
		return nil, rpctypes.ErrGRPCLeaseTTLTooLarge
	}
	granted, err := s.store.Grant(ctx, r.ID, max(r.TTL, 1))
	if err != nil {
		return nil, protocolError(err)
	}
	return &etcdserverpb.LeaseGrantResponse{Header: s.header(), ID: granted.ID, TTL: granted.TTL}, nil
}

// LeaseRevoke ends a lease and removes its keys.
func (s lease) LeaseRevoke(ctx context.Context, r *etcdserverpb.LeaseRevokeRequest) (*etcdserverpb.LeaseRevokeResponse, error) {
	revision, err := s.store.Revoke(ctx, r.ID)
	if err != nil {
		return nil, protocolError(err)
	}
	return &etcdserverpb.LeaseRevokeResponse{Header: header(revision)}, nil
}

// LeaseKeepAlive renews a lease for each request. The response for a lease that does not exist has
// TTL 0.
func (s lease) LeaseKeepAlive(stream etcdserverpb.Lease_LeaseKeepAliveServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(rpctypes.ErrGRPCStopped) })()
	go func() { cancel(s.keepAlive(ctx, stream)) }()
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (s lease) keepAlive(ctx context.Context, stream etcdserverpb.Lease_LeaseKeepAliveServer) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		renewed, err := s.store.Renew(ctx, r.ID)
		if err != nil && !errors.Is(err, bolt.ErrLeaseNotFound) {
			return protocolError(err)
		}
		resp := &etcdserverpb.LeaseKeepAliveResponse{Header: s.header(), ID: r.ID, TTL: renewed.TTL}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// LeaseTimeToLive returns the time that a lease has left: TTL -1 if the lease does not exist.
func (s lease) LeaseTimeToLive(_ context.Context, r *etcdserverpb.LeaseTimeToLiveRequest) (*etcdserverpb.LeaseTimeToLiveResponse, error) {
	one, err := s.store.Lease(r.ID)
	if err != nil {
		return &etcdserverpb.LeaseTimeToLiveResponse{Header: s.header(), ID: r.ID, TTL: -1}, nil
	}
	resp := &etcdserverpb.LeaseTimeToLiveResponse{
		Header: s.header(), ID: r.ID, GrantedTTL: one.TTL, TTL: int64(math.Ceil(float64(one.Left) / float64(time.Second))),
	}
	if r.Keys {
		for _, key := range one.Keys {
			resp.Keys = append(resp.Keys, []byte(key))
		}
	}
	return resp, nil
}

// LeaseLeases lists all leases.
func (s lease) LeaseLeases(context.Context, *etcdserverpb.LeaseLeasesRequest) (*etcdserverpb.LeaseLeasesResponse, error) {
	resp := &etcdserverpb.LeaseLeasesResponse{Header: s.header()}
	for _, id := range s.store.Leases() {
		resp.Leases = append(resp.Leases, &etcdserverpb.LeaseStatus{ID: id})
	}
	return resp, nil
}
