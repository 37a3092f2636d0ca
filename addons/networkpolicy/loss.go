package networkpolicy

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// watchLoss calls changed after somebody has removed tables ("nft flush ruleset", a firewall that is reloaded), so that
// the next write looks whether ours is among them. The kernel tells of each change of packet rules; nothing is
// asked for. stop waits for the end.
func (n *nftables) watchLoss(changed func()) (stop func(), err error) {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	suspect := func() { n.suspect.Store(true); changed() }
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			messages, _, err := socket.Receive()
			select {
			case <-stopped:
				return
			default:
			}
			switch {
			case errors.Is(err, unix.ENOBUFS): // more changes than there was room for
				suspect()
			case err != nil:
				slog.Warn("cannot hear whether somebody removes the rules; will be tried again", "component", Name, "err", err)
				suspect()
				select {
				case <-stopped:
					return
				case <-time.After(retryAfter):
				}
			}
			for _, m := range messages {
				if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE {
					suspect()
				}
			}
		}
	}()
	return func() { close(stopped); socket.Close(); <-done }, nil
}
