package etcd

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// buffers keeps buffers for answers. gRPC's own pool fills each with zeros before it is used again, all of it: a megabyte for
// an answer of 33 kB. What is taken here is written over.
type buffers struct {
	bySize [largestBuffer - smallestBuffer + 1]sync.Pool
}

// Buffers have sizes that are powers of two: of these. Larger ones are not kept.
const (
	smallestBuffer = 11 // 2 KiB; gRPC does not give back smaller ones than 1 KiB
	largestBuffer  = 20 // 1 MiB
)

var _ mem.BufferPool = (*buffers)(nil)

// Get implements mem.BufferPool.
func (p *buffers) Get(length int) *[]byte {
	exponent := max(bits.Len(uint(max(length, 1)-1)), smallestBuffer)
	if exponent > largestBuffer {
		b := make([]byte, length)
		return &b
	}
	if b, ok := p.bySize[exponent-smallestBuffer].Get().(*[]byte); ok {
		*b = (*b)[:length]
		return b
	}
	b := make([]byte, length, 1<<exponent)
	return &b
}

// Put implements mem.BufferPool.
func (p *buffers) Put(b *[]byte) {
	exponent := bits.Len(uint(cap(*b))) - 1
	if exponent >= smallestBuffer && exponent <= largestBuffer && cap(*b) == 1<<exponent {
		p.bySize[exponent-smallestBuffer].Put(b)
	}
}
