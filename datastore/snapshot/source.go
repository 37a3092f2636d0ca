package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrUnserved is returned when the datastore cannot serve snapshots: it is another database, which
// has backups of its own.
var ErrUnserved = errors.New("the datastore is another database, which has backups of its own")

// FromConnection returns a Source for a store that serves snapshots with etcd's protocol.
func FromConnection(conn *grpc.ClientConn) Source {
	return func(ctx context.Context) (*Stream, error) {
		stream, err := etcdserverpb.NewMaintenanceClient(conn).Snapshot(ctx, &etcdserverpb.SnapshotRequest{})
		if err != nil {
			return nil, streamError(err)
		}
		first, err := stream.Recv()
		if err != nil {
			return nil, streamError(err)
		}
		size := int64(len(first.Blob)) + int64(first.RemainingBytes)
		r := &streamReader{stream: stream, blob: first.Blob, left: size, sum: sha256.New()}
		return &Stream{Revision: first.Header.GetRevision(), Size: size, Reader: r}, nil
	}
}

// streamReader reads a stream of blobs. The last blob is the checksum of all others.
type streamReader struct {
	stream etcdserverpb.Maintenance_SnapshotClient
	blob   []byte
	left   int64
	sum    hash.Hash
}

// Read implements io.Reader. It returns EOF only if the checksum is right.
func (r *streamReader) Read(p []byte) (int, error) {
	for len(r.blob) == 0 {
		resp, err := r.stream.Recv()
		if errors.Is(err, io.EOF) {
			return 0, io.ErrUnexpectedEOF // a complete stream ends with the checksum
		}
		if err != nil {
			return 0, streamError(err)
		}
		r.blob = resp.Blob
		if r.left == 0 && len(r.blob) > 0 {
			if !bytes.Equal(r.blob, r.sum.Sum(nil)) {
				return 0, errors.New("the datastore's stream has another sum than it says")
			}
			r.blob = nil
			return 0, io.EOF
		}
	}
	n := copy(p, r.blob[:min(int64(len(r.blob)), r.left)])
	if n == 0 && len(p) > 0 {
		return 0, errors.New("the datastore's stream is longer than it says")
	}
	r.sum.Write(p[:n])
	r.blob = r.blob[n:]
	r.left -= int64(n)
	return n, nil
}

func streamError(err error) error {
	switch status.Code(err) {
	case codes.Unimplemented:
		return ErrUnserved
	case codes.ResourceExhausted: // the data in memory does not fit into the file
		return fmt.Errorf("%w: %s", ErrNoRoom, status.Convert(err).Message())
	}
	return fmt.Errorf("read datastore: %s", status.Convert(err).Message())
}
