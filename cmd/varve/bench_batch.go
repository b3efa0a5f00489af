package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"

	"google.golang.org/protobuf/encoding/protowire"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments/batch"
)

// batchShape is what the batches of a load look like.
type batchShape struct {
	recordSize int // bytes of a value
	records    int
	codec      client.Codec
	step       int64 // milliseconds from one record to the next
}

// newBatchShape fits as many records as go into batchBytes, unless a count is given.
func newBatchShape(recordSize, batchBytes int64, records int, codec client.Codec) (batchShape, error) {
	if recordSize < 0 || recordSize > 64*mib {
		return batchShape{}, usagef("--record-size %d: want 0 to 64 MiB", recordSize)
	}
	if records == 0 {
		const perRecord = 12 // varints around a value of a few KiB
		records = int(max(1, (batchBytes-batch.HeaderSize)/(recordSize+perRecord)))
	}
	if records < 1 || records > 1_000_000 {
		return batchShape{}, usagef("%d records a batch: want 1 to 1,000,000", records)
	}
	return batchShape{recordSize: int(recordSize), records: records, codec: codec}, nil
}

func (s batchShape) build(random *rand.ChaCha8) ([]byte, error) {
	b := batch.NewBuilder(s.codec)
	value := make([]byte, s.recordSize)
	for i := range s.records {
		// It never fails.
		_, _ = random.Read(value)
		if err := b.Append(batch.Record{Timestamp: int64(i) * s.step, Value: value}); err != nil {
			return nil, err
		}
	}
	return b.Build(batch.NoProducer)
}

// The fields of a batch that a ready request changes; see package batch.
const (
	crcAt           = 17
	crcFrom         = 21
	baseTimestampAt = 27
	maxTimestampAt  = 35
	producerIDAt    = 43
	producerEpochAt = 51
	baseSequenceAt  = 53
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// readyRequest is a Produce request as it goes over the wire. It is built once and then only changed where
// requests differ, so that building is no part of what is measured. It belongs to one sender.
type readyRequest struct {
	records int
	batch   []byte // within request
	request []byte
	tail    int   // where what follows the batch begins
	lasting int64 // milliseconds from the first record to the last

	// The CRC of the records, and what each bit of the header's CRC adds to that of the whole: a
	// CRC is linear, so that a new header needs no walk over the records.
	recordsCRC uint32
	shifted    [32]uint32
}

func newReadyRequest(shape batchShape, random *rand.ChaCha8) (*readyRequest, error) {
	data, err := shape.build(random)
	if err != nil {
		return nil, err
	}
	request := protowire.AppendTag(nil, recordBatchField, protowire.BytesType)
	request = protowire.AppendVarint(request, uint64(len(data)))
	start := len(request)
	request = append(request, data...)
	p := &readyRequest{records: shape.records, request: request, batch: request[start:], tail: len(request),
		lasting: int64(shape.records-1) * shape.step}
	records := p.batch[batch.HeaderSize:]
	p.recordsCRC = crc32.Checksum(records, castagnoli)
	for i := range p.shifted {
		p.shifted[i] = crc32.Update(1<<i, castagnoli, records) ^ p.recordsCRC
	}
	return p, nil
}

// Fields of ProduceRequest.
const (
	topicField       = protowire.Number(1)
	partitionField   = protowire.Number(2)
	acksField        = protowire.Number(3)
	recordBatchField = protowire.Number(5)
)

// address says where the batch goes.
func (p *readyRequest) address(topic string, partition int32, acks varvev1.Acks) {
	b := p.request[:p.tail]
	b = protowire.AppendString(protowire.AppendTag(b, topicField, protowire.BytesType), topic)
	b = protowire.AppendVarint(protowire.AppendTag(b, partitionField, protowire.VarintType), uint64(partition))
	b = protowire.AppendVarint(protowire.AppendTag(b, acksField, protowire.VarintType), uint64(acks))
	p.request, p.batch = b, b[p.tail-len(p.batch):p.tail]
}

// stamp gives the first record its time, the others theirs after it, and the batch its producer fields.
func (p *readyRequest) stamp(ms int64, producer batch.BuildOptions) {
	b := p.batch
	binary.BigEndian.PutUint64(b[baseTimestampAt:], uint64(ms))
	binary.BigEndian.PutUint64(b[maxTimestampAt:], uint64(ms+p.lasting))
	binary.BigEndian.PutUint64(b[producerIDAt:], uint64(producer.ProducerID))
	binary.BigEndian.PutUint16(b[producerEpochAt:], uint16(producer.ProducerEpoch))
	binary.BigEndian.PutUint32(b[baseSequenceAt:], uint32(producer.BaseSequence))
	crc := p.recordsCRC
	header := crc32.Checksum(b[crcFrom:batch.HeaderSize], castagnoli)
	for i := range p.shifted {
		if header&(1<<i) != 0 {
			crc ^= p.shifted[i]
		}
	}
	binary.BigEndian.PutUint32(b[crcAt:], crc)
}

// size is that of the batch in bytes, or of a request that holds single records.
func (p *readyRequest) size() int64 {
	if p.batch == nil {
		return int64(len(p.request))
	}
	return int64(len(p.batch))
}

// batchIn finds the record batch in a ready request's request, which begins with it.
func batchIn(request []byte) ([]byte, error) {
	number, kind, n := protowire.ConsumeTag(request)
	if n < 0 || number != recordBatchField || kind != protowire.BytesType {
		return nil, fmt.Errorf("the request does not begin with a record batch")
	}
	data, m := protowire.ConsumeBytes(request[n:])
	if m < batch.HeaderSize {
		return nil, fmt.Errorf("the record batch is cut short")
	}
	return data, nil
}
