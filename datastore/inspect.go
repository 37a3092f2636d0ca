package datastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
)

// Status is the report of a store about itself.
type Status struct {
	Engine    string `json:"engine"`
	Path      string `json:"path"`
	Format    int    `json:"format"`
	Revision  int64  `json:"revision"`
	Compacted int64  `json:"compacted"`
	// FileBytes and LogBytes are the sizes of the files. MemoryBytes is the size of the writes that
	// are not in the file yet.
	FileBytes   int64 `json:"fileBytes"`
	LogBytes    int64 `json:"logBytes"`
	MemoryBytes int64 `json:"memoryBytes"`
	Leases      int64 `json:"leases"`
	Watches     int64 `json:"watches"`
	// UsedBytes is the used part of QuotaBytes.
	UsedBytes  int64 `json:"usedBytes"`
	QuotaBytes int64 `json:"quotaBytes"`
	// Repairs are the repairs of this start of the store, and earlier repairs that no server has
	// reported.
	Repairs []rescue.Repair `json:"repairs"`
}

// ErrNotOurs is the error of FetchStatus and Check for a store that does not use mote's own engine.
var ErrNotOurs = errors.New("the datastore is another database")

// The inspection service of mote runs beside etcd's services, on the same socket. Its messages are
// JSON inside protobuf's well-known types: client and server are both in this file.
const (
	inspection   = "mote.datastore.Inspection"
	methodStatus = "Status"
	methodCheck  = "Check"
)

// inspector implements the inspection service.
type inspector struct {
	store *bolt.Store
	path  string
}

func (i inspector) register(srv *grpc.Server) {
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: inspection,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			{MethodName: methodStatus, Handler: answer(func() (any, error) { return i.status() })},
			{MethodName: methodCheck, Handler: answer(func() (any, error) { return i.check(), nil })},
		},
	}, i)
}

// answer returns the handler of a method without parameters.
func answer(ask func() (any, error)) grpc.MethodHandler {
	return func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		if err := decode(&emptypb.Empty{}); err != nil {
			return nil, err
		}
		v, err := ask()
		if err != nil {
			return nil, err
		}
		data, err := json.Marshal(v)
		return wrapperspb.Bytes(data), err
	}
}

func (i inspector) status() (Status, error) {
	stats, err := i.store.Stats()
	return Status{
		Engine: "bolt", Path: i.path, Format: format.Version, Revision: i.store.Revision(), Compacted: i.store.Compacted(),
		FileBytes: stats.FileBytes, LogBytes: stats.LogBytes, MemoryBytes: stats.MemoryBytes,
		Leases: stats.Leases, Watches: stats.Watches, UsedBytes: stats.UsedBytes, QuotaBytes: stats.QuotaBytes, Repairs: append([]rescue.Repair{}, i.store.Repairs()...),
	}, err
}

func (i inspector) check() []string { return problems(i.store.Check()) }

// CheckFile reads all of a store that no process has open, its log included. It changes nothing and
// returns the problems that it found.
func CheckFile(path string) []string { return problems(rescue.Examine(path)) }

// problems splits a joined error into its messages.
func problems(err error) []string {
	found := []string{}
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
	case errors.As(err, &joined):
		for _, one := range joined.Unwrap() {
			found = append(found, one.Error())
		}
	default:
		found = append(found, err.Error())
	}
	return found
}

// FetchStatus requests the Status of the store behind conn.
func FetchStatus(ctx context.Context, conn *grpc.ClientConn) (Status, error) {
	var s Status
	err := ask(ctx, conn, methodStatus, &s)
	return s, err
}

// Check makes the store behind conn check all of its data, and returns the problems that it found.
func Check(ctx context.Context, conn *grpc.ClientConn) ([]string, error) {
	var found []string
	err := ask(ctx, conn, methodCheck, &found)
	return found, err
}

func ask(ctx context.Context, conn *grpc.ClientConn, method string, out any) error {
	resp := &wrapperspb.BytesValue{}
	err := conn.Invoke(ctx, "/"+inspection+"/"+method, &emptypb.Empty{}, resp)
	switch {
	case status.Code(err) == codes.Unimplemented:
		return ErrNotOurs
	case err != nil:
		return fmt.Errorf("ask datastore: %s", status.Convert(err).Message())
	}
	return json.Unmarshal(resp.Value, out)
}
