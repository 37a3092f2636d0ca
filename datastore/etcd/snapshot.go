package etcd

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Snapshot streams the store's file at one moment, followed by its SHA-256, as etcd does. The file
// does not have etcd's format; only mote reads it.
func (s *maintenance) Snapshot(_ *etcdserverpb.SnapshotRequest, stream etcdserverpb.Maintenance_SnapshotServer) (err error) {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(rpctypes.ErrGRPCStopped) })()
	snapshot, err := s.store.Copy(ctx)
	if err != nil {
		return protocolError(err)
	}
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	w := &snapshotStream{ctx: ctx, stream: stream, header: header(snapshot.Revision), remaining: snapshot.Size, sum: sha256.New()}
	if _, err := snapshot.WriteTo(w); err != nil {
		return protocolError(err)
	}
	return stream.Send(&etcdserverpb.SnapshotResponse{Header: w.header, Blob: w.sum.Sum(nil)})
}

// snapshotStream sends the bytes that are written to it.
type snapshotStream struct {
	ctx       context.Context
	stream    etcdserverpb.Maintenance_SnapshotServer
	header    *etcdserverpb.ResponseHeader
	remaining int64
	sum       hash.Hash
}

// Write implements io.Writer.
func (w *snapshotStream) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	w.sum.Write(p)
	w.remaining -= int64(len(p))
	err := w.stream.Send(&etcdserverpb.SnapshotResponse{Header: w.header, RemainingBytes: uint64(max(w.remaining, 0)), Blob: p})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}
