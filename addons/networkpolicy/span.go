package networkpolicy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// span is a range of ports or addresses, both ends included.
type span[T comparable] struct{ first, last T }

func (s span[T]) String() string {
	if s.first == s.last {
		return fmt.Sprint(s.first)
	}
	return fmt.Sprintf("%v-%v", s.first, s.last)
}

// merge sorts spans and joins those that overlap or touch, because a set in the kernel accepts no
// overlaps. next returns the value after another, or false after the last value.
func merge[T comparable](spans []span[T], compare func(a, b T) int, next func(T) (T, bool)) []span[T] {
	slices.SortFunc(spans, func(a, b span[T]) int { return compare(a.first, b.first) })
	var merged []span[T]
	for _, s := range spans {
		if n := len(merged); n > 0 {
			after, ok := next(merged[n-1].last)
			if !ok || compare(s.first, after) <= 0 {
				if compare(s.last, merged[n-1].last) > 0 {
					merged[n-1].last = s.last
				}
				continue
			}
		}
		merged = append(merged, s)
	}
	return merged
}

func mergeAddresses(spans []span[netip.Addr]) []span[netip.Addr] {
	return merge(spans, netip.Addr.Compare, func(a netip.Addr) (netip.Addr, bool) { n := a.Next(); return n, n.IsValid() })
}

func mergePorts(spans []span[int32]) []span[int32] {
	return merge(spans, cmp.Compare[int32], func(p int32) (int32, bool) { return p + 1, true })
}

// addressesOf returns the span of a network.
func addressesOf(p netip.Prefix) span[netip.Addr] {
	p = p.Masked()
	bytes := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return span[netip.Addr]{p.Addr(), last}
}

// without returns the rest of a network after some of its parts are cut out.
func without(whole netip.Prefix, parts []netip.Prefix) []span[netip.Addr] {
	var cut []span[netip.Addr]
	for _, p := range parts {
		if p.Overlaps(whole) { // older objects may have parts outside the network
			cut = append(cut, addressesOf(p))
		}
	}
	var left []span[netip.Addr]
	rest := addressesOf(whole)
	for _, c := range mergeAddresses(cut) {
		if rest.first.Less(c.first) {
			left = append(left, span[netip.Addr]{rest.first, c.first.Prev()})
		}
		if !c.last.Less(rest.last) {
			return left
		}
		rest.first = c.last.Next()
	}
	return append(left, rest)
}
