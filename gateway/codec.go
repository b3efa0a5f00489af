package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// binaryCodec is connectproto's, but that it decodes a request where it lies in the
// transport's buffer, without a copy into a second one. A message never shares memory
// with that buffer.
//
// Records that are read are not copied into the transport's buffer either: it is given the
// memory in which they lie for its own. Large produce requests are not in that buffer: see [bodies].
type binaryCodec struct {
	*connectproto.BinaryCodec
	room *messageRoom // of messages of records, which are encoded where they lie; nil: none are
}

func newBinaryCodec(room *messageRoom) *binaryCodec {
	return &binaryCodec{connectproto.NewBinaryCodec(), room}
}

// MarshalWrite encodes a message.
func (c *binaryCodec) MarshalWrite(ctx context.Context, dst io.Writer, msg any) error {
	if r, ok := msg.(*varvev1.ConsumeResponse); ok && c.room != nil {
		if buffer, ok := dst.(*bytes.Buffer); ok {
			if done, err := c.room.write(buffer, r); done || err != nil {
				return err
			}
		}
	}
	return c.BinaryCodec.MarshalWrite(ctx, dst, msg)
}

// UnmarshalRead decodes a message.
func (c *binaryCodec) UnmarshalRead(ctx context.Context, src io.Reader, msg any) error {
	m, ok := msg.(proto.Message)
	if !ok {
		return fmt.Errorf("%w: got %T", connectproto.ErrNotProtoMessage, msg)
	}
	var data []byte
	if buffer, ok := src.(*bytes.Buffer); ok {
		data = buffer.Next(buffer.Len())
	} else {
		var err error
		if data, err = io.ReadAll(src); err != nil {
			return err
		}
	}
	if req, ok := msg.(*varvev1.ProduceRequest); ok && len(data) == 0 {
		if b := bodyOf(ctx); b != nil {
			return b.decode(req, func(data []byte) error { return c.UnmarshalOptions.Unmarshal(data, m) })
		}
	}
	return c.UnmarshalOptions.Unmarshal(data, m)
}

// newJSONCodec speaks JSON for people: zero values are there (offset 0!), absent
// optional ones are not, and an unknown field is an error, not a silent typo.
func newJSONCodec() *connectproto.JSONCodec {
	c := connectproto.NewJSONCodec()
	c.MarshalOptions.EmitDefaultValues = true
	c.UnmarshalOptions.DiscardUnknown = false
	return c
}
