package networkpolicy

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// watchLoss calls changed after another program has removed tables ("nft flush ruleset", a firewall
// that is reloaded). The next write then checks whether mote's table is among them. The kernel
// sends a message for each change of packet rules, so there is no polling. stop ends the watch and
// waits for its end.
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
			case errors.Is(err, unix.ENOBUFS): // there were more changes than the buffer holds
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
