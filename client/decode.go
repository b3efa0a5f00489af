package client

import (
	"fmt"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/varvelog/varve/segments/batch"
)

// ownLimits are for batches that this process built, or that a gateway accepted: wide, so that no
// configuration of a topic is too large for a reader, and finite, so that damage can't exhaust memory.
var ownLimits = batch.Limits{
	MaxBatchBytes:    256 << 20,
	MaxInflatedBytes: 512 << 20,
	MaxRecordBytes:   256 << 20,
	MaxRecords:       1 << 24,
}

// decoder turns messages into records that the consumer asked for.
type decoder struct {
	topic   string
	between *TimeRange
	// ends are the exclusive ends by partition; absent: none.
	ends map[int32]int64
}

// records calls yield for each record of m until it returns false. It returns false then.
func (d *decoder) records(m Batches, yield func(Record) bool) (bool, *Error) {
	end, bounded := d.ends[m.Partition]
	for raw, err := range batch.Split(m.Data) {
		if err != nil {
			return false, d.damaged(m, err)
		}
		h, err := batch.ParseHeader(raw)
		if err != nil {
			return false, d.damaged(m, err)
		}
		if h.Control() || h.EndOffset() <= m.StartOffset {
			continue
		}
		for r, err := range batch.Records(raw, ownLimits) {
			if err != nil {
				return false, d.damaged(m, fmt.Errorf("batch at offset %d: %w", h.BaseOffset, err))
			}
			if r.Offset < m.StartOffset || d.between != nil && !d.between.contains(r.Timestamp) {
				continue
			}
			if bounded && r.Offset >= end {
				return true, nil
			}
			if !yield(d.record(m.Partition, &r)) {
				return false, nil
			}
		}
	}
	return true, nil
}

func (d *decoder) record(partition int32, r *batch.Record) Record {
	rec := Record{
		Topic: d.topic, Partition: partition, Offset: r.Offset,
		Key: r.Key, Value: r.Value, Headers: r.Headers,
	}
	if r.Timestamp >= 0 {
		rec.Timestamp = time.UnixMilli(r.Timestamp)
	}
	return rec
}

func (d *decoder) damaged(m Batches, cause error) *Error {
	err := newError(connect.CodeDataLoss, fmt.Sprintf("what was read from offset %d on is damaged: %v", m.StartOffset, cause))
	err.Topic, err.Partition, err.cause = d.topic, m.Partition, cause
	return err
}
