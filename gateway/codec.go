package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// binaryCodec is connectproto's, without its copy of a request into a second buffer,
// and without any copy of a record batch whose request was handed over (see
// handover). Answers are connectproto's: it writes a message once, straight into
// the transport's buffer.
type binaryCodec struct {
	*connectproto.BinaryCodec
}

func newBinaryCodec() *binaryCodec { return &binaryCodec{connectproto.NewBinaryCodec()} }

// UnmarshalRead decodes a message. A ProduceRequest out of a handed-over body shares
// memory with it.
func (c *binaryCodec) UnmarshalRead(ctx context.Context, src io.Reader, msg any) error {
	m, ok := msg.(proto.Message)
	if !ok {
		return fmt.Errorf("%w: got %T", connectproto.ErrNotProtoMessage, msg)
	}
	if produce, ok := m.(*varvev1.ProduceRequest); ok {
		if body := handedOver(ctx); body != nil {
			return unmarshalProduce(body, produce)
		}
	}
	data, err := contiguous(src)
	if err != nil {
		return err
	}
	return c.UnmarshalOptions.Unmarshal(data, m)
}

// contiguous returns all of src, without a copy where it lies in memory: the
// transport's buffer, which is valid for as long as decoding takes.
func contiguous(src io.Reader) ([]byte, error) {
	if buffer, ok := src.(*bytes.Buffer); ok {
		return buffer.Next(buffer.Len()), nil
	}
	return io.ReadAll(src)
}

// batchField is ProduceRequest.record_batch.
const batchField = protowire.Number(5)

// unmarshalProduce is proto.Unmarshal, but that record_batch shares memory with body:
// the batch is cut out, the few bytes of the rest are decoded as ever.
func unmarshalProduce(body []byte, m *varvev1.ProduceRequest) error {
	start, end, data := findField(body, batchField)
	if data == nil {
		return proto.Unmarshal(body, m)
	}
	rest := make([]byte, 0, len(body)-(end-start))
	rest = append(append(rest, body[:start]...), body[end:]...)
	if err := proto.Unmarshal(rest, m); err != nil {
		return err
	}
	m.RecordBatch = data
	return nil
}

// findField finds the one occurrence of a field of bytes: body[start:end] is the field
// with its tag, data its content. data is nil if there is none, or more than one, or
// an empty one, or if the message is malformed.
func findField(body []byte, number protowire.Number) (start, end int, data []byte) {
	for at := 0; at < len(body); {
		n, kind, tag := protowire.ConsumeTag(body[at:])
		if tag < 0 {
			return 0, 0, nil
		}
		size := protowire.ConsumeFieldValue(n, kind, body[at+tag:])
		if size < 0 {
			return 0, 0, nil
		}
		if n == number {
			if data != nil || kind != protowire.BytesType {
				return 0, 0, nil
			}
			value, _ := protowire.ConsumeBytes(body[at+tag:])
			if len(value) == 0 {
				return 0, 0, nil
			}
			start, end, data = at, at+tag+size, value[:len(value):len(value)]
		}
		at += tag + size
	}
	return start, end, data
}

// newJSONCodec speaks JSON for people: zero values are there (offset 0!), absent
// optional ones are not, and an unknown field is an error, not a silent typo.
func newJSONCodec() *connectproto.JSONCodec {
	c := connectproto.NewJSONCodec()
	c.MarshalOptions.EmitDefaultValues = true
	c.UnmarshalOptions.DiscardUnknown = false
	return c
}

var _ connect.Codec = (*binaryCodec)(nil)
