package etcd

import (
	"bytes"
	"context"
	"errors"
	"io"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mote-k8s/mote/datastore/bolt"
)

// maxEvents is roughly how many bytes of events go into one response. Every revision is one event
// here, so a response may end after any of them, and clients need no support for fragments.
const maxEvents = 1 << 20

// The watches of a stream are numbered from 0. A client that asks for 0 lets the server choose the
// number.
const (
	chooseWatch = 0
	noWatch     = bolt.AllWatches
)

type watch struct{ *Server }

var _ etcdserverpb.WatchServer = watch{}

// Watch serves one stream of any number of watches. This goroutine sends. Another one receives. It
// ends soon after this one, because gRPC releases a receiver only after the handler has returned.
func (s watch) Watch(ws etcdserverpb.Watch_WatchServer) error {
	ctx, cancel := context.WithCancelCause(ws.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(rpctypes.ErrGRPCStopped) })()
	st := &stream{store: s.store, ws: ws, watcher: s.store.NewWatcher()}
	defer st.watcher.Close()
	go func() {
		if err := st.receive(); err != nil {
			cancel(err)
		}
	}()
	for {
		messages, err := st.watcher.Next(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return protocolError(err)
		}
		for _, m := range messages {
			if err := st.send(m); err != nil {
				return err
			}
		}
	}
}

type stream struct {
	store   *bolt.Store
	ws      etcdserverpb.Watch_WatchServer
	watcher *bolt.Watcher
	next    int64 // receiver goroutine only: the lowest number that was not chosen yet
}

// receive executes the client's requests until the client goes. A client that only closes its
// sending side still receives.
func (st *stream) receive() error {
	for {
		req, err := st.ws.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case req.GetCreateRequest() != nil:
			if err := st.create(req.GetCreateRequest()); err != nil {
				st.watcher.Post(bolt.Message{Watch: noWatch, Created: true, Ended: true, Err: err})
			}
		case req.GetCancelRequest() != nil:
			st.watcher.Cancel(req.GetCancelRequest().WatchId)
		case req.GetProgressRequest() != nil:
			st.watcher.RequestProgress()
		}
	}
}

func (st *stream) create(r *etcdserverpb.WatchCreateRequest) error {
	if len(r.Key) == 0 {
		r.Key = []byte{0} // the smallest key
	}
	toTheEnd := bytes.Equal(r.RangeEnd, []byte{0})
	switch {
	case r.StartRevision < 0:
		return bolt.ErrCompacted
	case r.WatchId < 0:
		return status.Error(codes.InvalidArgument, "watch ID is negative")
	case len(r.Filters) > 0:
		return unserved("watch with filters")
	case len(r.RangeEnd) > 0 && !toTheEnd && bytes.Compare(r.Key, r.RangeEnd) >= 0:
		return status.Error(codes.InvalidArgument, "mvcc: watcher range is empty")
	}
	wish := bolt.Range{
		Key: string(r.Key), End: string(r.RangeEnd), From: r.StartRevision,
		PrevKV: r.PrevKv, Progress: r.ProgressNotify,
	}
	if r.WatchId != chooseWatch {
		if !st.watcher.Watch(r.WatchId, wish) {
			return status.Error(codes.InvalidArgument, "mvcc: duplicate watch ID provided on the WatchStream")
		}
		return nil
	}
	for chosen := false; !chosen; st.next++ {
		chosen = st.watcher.Watch(st.next, wish)
	}
	return nil
}

// send sends one message in responses of limited size.
func (st *stream) send(m bolt.Message) error {
	resp := &etcdserverpb.WatchResponse{
		Header: header(m.Revision), WatchId: m.Watch, Created: m.Created, Canceled: m.Ended,
	}
	if m.Err != nil {
		// Clients identify etcd's errors by their text.
		resp.CancelReason = rpctypes.ErrorDesc(protocolError(m.Err))
	}
	if errors.Is(m.Err, bolt.ErrCompacted) {
		resp.CompactRevision = st.store.Compacted()
	}
	size := 0
	for _, e := range m.Events {
		if size += eventSize(e); size > maxEvents && len(resp.Events) > 0 {
			if err := st.ws.Send(resp); err != nil {
				return err
			}
			resp = &etcdserverpb.WatchResponse{Header: header(m.Revision), WatchId: m.Watch}
			size = eventSize(e)
		}
		resp.Events = append(resp.Events, event(e))
	}
	return st.ws.Send(resp)
}

func eventSize(e bolt.Event) int {
	size := len(e.KV.Key) + len(e.KV.Value)
	if e.Prev != nil {
		size += len(e.Prev.Value)
	}
	return size
}

func event(e bolt.Event) *mvccpb.Event {
	out := &mvccpb.Event{Kv: keyValue(e.KV), PrevKv: keyValue(e.Prev)}
	if e.Deleted {
		out.Type = mvccpb.DELETE
	}
	return out
}
