package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/miekg/dns"
)

// query packs a question that is in no cache.
func query(n int64) ([]byte, error) {
	return new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.default.svc.cluster.local.", n), dns.TypeA).Pack()
}

// dnsPipeline sends questions over TCP as fast as the server reads them and never reads an answer.
func dnsPipeline(ctx context.Context, o options, t *tally) error {
	var batch []byte
	const each = 100
	for i := range int64(each) {
		packed, err := query(i)
		if err != nil {
			return err
		}
		batch = binary.BigEndian.AppendUint16(batch, uint16(len(packed)))
		batch = append(batch, packed...)
	}
	workers(o.count, func(int) {
		hold(ctx, o, t, func(conn net.Conn) {
			for ctx.Err() == nil {
				if _, err := conn.Write(batch); err != nil {
					return
				}
				t.addN("queries", each)
			}
		})
	})
	return nil
}

// dnsFlood sends questions over UDP as fast as it can.
func dnsFlood(ctx context.Context, o options, t *tally) error {
	var number atomic.Int64
	workers(o.count, func(int) {
		conn, err := net.Dial("udp", o.target)
		if err != nil {
			t.fail(err)
			return
		}
		defer conn.Close()
		for ctx.Err() == nil {
			packed, err := query(number.Add(1))
			if err == nil {
				_, err = conn.Write(packed)
			}
			if err != nil {
				t.fail(err)
				if !rest(ctx, retryPause) {
					return
				}
				continue
			}
			t.add("queries")
		}
	})
	return nil
}
