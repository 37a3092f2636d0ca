package etcd

import (
	"context"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// maintenance serves Status and the alarms; what is embedded refuses the rest by name.
type maintenance struct {
	*Server
	etcdserverpb.UnimplementedMaintenanceServer
}

var _ etcdserverpb.MaintenanceServer = (*maintenance)(nil)

// Status says what the apiserver's feature checks and its metric of the store's size ask for.
func (s *maintenance) Status(context.Context, *etcdserverpb.StatusRequest) (*etcdserverpb.StatusResponse, error) {
	size, err := s.store.Size()
	if err != nil {
		return nil, protocolError(err)
	}
	return &etcdserverpb.StatusResponse{Header: s.header(), Version: Version, DbSize: size}, nil
}

// Alarm lists NOSPACE while writes are refused for want of space, which ends by itself, and CORRUPT once damage was met, which a
// restart repairs. To disarm them is allowed and changes nothing.
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
