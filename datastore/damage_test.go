package datastore_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestDamageIsAnAlarm checks that after damage clients see etcd's alarm and the component reports a
// trouble.
func TestDamageIsAnAlarm(t *testing.T) {
	dir := t.TempDir()
	d, stop := serve(t, dir)
	_, err := clientOf(t, d).Put(t.Context(), "/key", "value")
	require.NoError(t, err)
	stop()
	d, stop = serve(t, dir)
	defer stop()
	client := clientOf(t, d)
	alarms, err := client.AlarmList(t.Context())
	require.NoError(t, err)
	require.Empty(t, alarms.Alarms)
	require.Empty(t, d.Trouble())

	file, err := os.OpenFile(config(dir).Path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer file.Close()
	const page, pages = 4096, 64
	_, err = file.WriteAt(make([]byte, (pages-2)*page), 2*page) // everything except the headers
	require.NoError(t, err)
	_, err = etcdserverpb.NewKVClient(client.ActiveConnection()).Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("/key")})
	require.Equal(t, codes.DataLoss, status.Code(err), "%v", err)
	alarms, err = client.AlarmList(t.Context())
	require.NoError(t, err)
	require.Len(t, alarms.Alarms, 1)
	require.Equal(t, etcdserverpb.AlarmType_CORRUPT, alarms.Alarms[0].Alarm)
	require.Contains(t, d.Trouble()[0], "restart mote")
}
