package etcd

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// gogoMessage has the methods that gogo/protobuf has generated for etcd's messages.
type gogoMessage interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
	Unmarshal([]byte) error
}

// Codec returns the codec that a gRPC server must have before Register is called on it. gRPC's own
// codec treats etcd's messages as legacy: it uses reflection, and copies each answer once more.
// Messages of other services go to gRPC's own codec.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(proto.Name), &buffers{}} }

type codec struct {
	other encoding.CodecV2
	pool  *buffers
}

// Name implements encoding.CodecV2. It is the name of gRPC's codec, because the bytes are the same.
func (codec) Name() string { return proto.Name }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if answer, ok := v.(*encoded); ok {
		return answer.data, nil
	}
	m, ok := v.(gogoMessage)
	if !ok {
		return c.other.Marshal(v)
	}
	size := m.Size()
	if mem.IsBelowBufferPoolingThreshold(size) {
		b := make([]byte, size)
		_, err := m.MarshalToSizedBuffer(b)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	b := c.pool.Get(size)
	if _, err := m.MarshalToSizedBuffer(*b); err != nil {
		c.pool.Put(b)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(b, c.pool)}, nil
}

// Unmarshal implements encoding.CodecV2. Messages copy the data that they keep.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(gogoMessage)
	if !ok {
		return c.other.Unmarshal(data, v)
	}
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	return m.Unmarshal(b.ReadOnlyData())
}
