package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

const (
	// frameHeader begins each message of a Connect stream: flags and length.
	frameHeader = 5
	// frameEnd flags the last one, which holds the outcome as JSON.
	frameEnd = 2
	// frameLimit is the largest message that is taken, in bytes.
	frameLimit = 64 * mib
)

// batchStream reads a Consume stream without decoding more than it must: what is measured is the gateway.
type batchStream struct {
	response *http.Response
	buffer   []byte
}

// message is a ConsumeResponse as far as a bench looks at it.
type message struct {
	partition  int32
	batches    []byte // valid until the next message
	nextOffset int64
}

// consume opens a stream.
func (w *wire) consume(ctx context.Context, request *varvev1.ConsumeRequest) (*batchStream, error) {
	data, err := proto.Marshal(request)
	if err != nil {
		return nil, err
	}
	frame := make([]byte, frameHeader, frameHeader+len(data))
	binary.BigEndian.PutUint32(frame[1:], uint32(len(data)))
	response, err := w.open(ctx, varvev1connect.LogServiceConsumeProcedure, "application/connect+proto", append(frame, data...))
	if err != nil {
		return nil, err
	}
	return &batchStream{response: response}, nil
}

func (s *batchStream) close() { s.response.Body.Close() }

// header reads how long the next message is in bytes, and whether it is the last, which holds the outcome.
func (s *batchStream) header() (size int, last bool, err error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(s.response.Body, header[:]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // the last frame says that it is the last
		}
		return 0, false, err
	}
	size = int(binary.BigEndian.Uint32(header[1:]))
	if size > frameLimit {
		return 0, false, fmt.Errorf("a message of %d bytes is over the limit of %d", size, frameLimit)
	}
	return size, header[0]&frameEnd != 0, nil
}

// next returns the next message; io.EOF is the good end of the stream.
func (s *batchStream) next() (message, error) {
	size, last, err := s.header()
	if err != nil {
		return message{}, err
	}
	if cap(s.buffer) < size {
		s.buffer = make([]byte, size)
	}
	data := s.buffer[:size]
	if _, err := io.ReadFull(s.response.Body, data); err != nil {
		return message{}, err
	}
	if last {
		return message{}, outcome(data)
	}
	return parseMessage(data)
}

// outcome is what the end of a stream says.
func outcome(data []byte) error {
	var end struct {
		Error *refusal `json:"error"`
	}
	if err := json.Unmarshal(data, &end); err != nil {
		return fmt.Errorf("the end of the stream is malformed: %w", err)
	}
	if end.Error != nil {
		return end.Error
	}
	return io.EOF
}

// Fields of ConsumeResponse.
const (
	responsePartition = protowire.Number(1)
	responseBatches   = protowire.Number(2)
	responseNext      = protowire.Number(3)
)

var errMalformed = errors.New("a message of the stream is malformed")

func parseMessage(data []byte) (m message, err error) {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return m, errMalformed
		}
		value := data[n:]
		size := protowire.ConsumeFieldValue(number, kind, value)
		if size < 0 {
			return m, errMalformed
		}
		switch {
		case number == responseBatches && kind == protowire.BytesType:
			m.batches, _ = protowire.ConsumeBytes(value)
		case number == responsePartition && kind == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(value)
			m.partition = int32(v)
		case number == responseNext && kind == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(value)
			m.nextOffset = int64(v)
		}
		data = value[size:]
	}
	return m, nil
}
