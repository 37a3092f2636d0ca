package datastore

import (
	"fmt"
	"math"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Client returns a client of the store. It connects on first use. The caller must close it.
func (d *Datastore) Client() (*clientv3.Client, error) {
	config := clientv3.Config{
		Endpoints: strings.Split(d.Endpoint(), ","), Logger: zap.NewNop(),
		MaxCallSendMsgSize: maxMessage, MaxCallRecvMsgSize: math.MaxInt32,
	}
	if elsewhere, ok := d.engine.(remote); ok && elsewhere.urls[0].Scheme == "https" {
		config.TLS = elsewhere.tls.Clone()
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, fmt.Errorf("make a client of %s: %w", d, err)
	}
	return client, nil
}
