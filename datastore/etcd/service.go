package etcd

import (
	"context"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// kvService describes etcd's KV service as its generated code does, except that Range returns an
// encoded answer.
func kvService() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "etcdserverpb.KV",
		HandlerType: (*kvServer)(nil),
		Methods: []grpc.MethodDesc{
			unary("Range", kvServer.Range),
			unary("Put", kvServer.Put),
			unary("DeleteRange", kvServer.DeleteRange),
			unary("Txn", kvServer.Txn),
			unary("Compact", kvServer.Compact),
		},
		Metadata: "rpc.proto",
	}
}

// kvServer is etcdserverpb.KVServer except for the result of Range.
type kvServer interface {
	Range(context.Context, *etcdserverpb.RangeRequest) (*encoded, error)
	Put(context.Context, *etcdserverpb.PutRequest) (*etcdserverpb.PutResponse, error)
	DeleteRange(context.Context, *etcdserverpb.DeleteRangeRequest) (*etcdserverpb.DeleteRangeResponse, error)
	Txn(context.Context, *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error)
	Compact(context.Context, *etcdserverpb.CompactionRequest) (*etcdserverpb.CompactionResponse, error)
}

// unary describes a method.
func unary[In, Out any](name string, call func(kvServer, context.Context, *In) (*Out, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := new(In)
		if err := decode(in); err != nil {
			return nil, err
		}
		handle := func(ctx context.Context, in any) (any, error) {
			out, err := call(srv.(kvServer), ctx, in.(*In))
			if err != nil {
				return nil, err
			}
			return out, nil
		}
		if intercept == nil {
			return handle(ctx, in)
		}
		return intercept(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/etcdserverpb.KV/" + name}, handle)
	}}
}
