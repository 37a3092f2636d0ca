package etcd

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// buffers is a pool of buffers for answers. gRPC's own pool fills a whole buffer with zeros before
// each reuse: a megabyte for an answer of 33 kB. This pool does not, because its users overwrite
// the buffers.
type buffers struct {
	bySize [largestBuffer - smallestBuffer + 1]sync.Pool
}

// The sizes of buffers are powers of two between these exponents. Larger buffers are not kept.
const (
	smallestBuffer = 11 // 2 KiB; gRPC does not give back buffers below 1 KiB
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
