package etcd

import (
	"context"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// maintenance serves Status and the alarms; the embedded server refuses all other methods by name.
type maintenance struct {
	*Server
	etcdserverpb.UnimplementedMaintenanceServer
}

var _ etcdserverpb.MaintenanceServer = (*maintenance)(nil)

// Status returns the fields that the apiserver's feature checks and its metric of the store's size
// need.
func (s *maintenance) Status(context.Context, *etcdserverpb.StatusRequest) (*etcdserverpb.StatusResponse, error) {
	size, err := s.store.Size()
	if err != nil {
		return nil, protocolError(err)
	}
	return &etcdserverpb.StatusResponse{Header: s.header(), Version: Version, DbSize: size}, nil
}

// Alarm lists NOSPACE while writes are refused for lack of space; this alarm ends by itself. It
// lists CORRUPT once a request has met damage, which a restart repairs. Disarming is accepted and
// changes nothing.
func (s *maintenance) Alarm(_ context.Context, r *etcdserverpb.AlarmRequest) (*etcdserverpb.AlarmResponse, error) {
	if r.Action == etcdserverpb.AlarmRequest_ACTIVATE {
		return nil, unserved("alarm that is set by hand")
	}
	resp := &etcdserverpb.AlarmResponse{Header: s.header()}
	raise := func(alarm etcdserverpb.AlarmType, is bool) {
		if is && (r.Alarm == etcdserverpb.AlarmType_NONE || r.Alarm == alarm) {
			resp.Alarms = append(resp.Alarms, &etcdserverpb.AlarmMember{Alarm: alarm})
		}
	}
	raise(etcdserverpb.AlarmType_NOSPACE, s.store.NoSpace())
	raise(etcdserverpb.AlarmType_CORRUPT, s.store.Damaged())
	return resp, nil
}
