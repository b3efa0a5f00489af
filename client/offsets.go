package client

import (
	"context"
	"slices"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// OffsetQuery is a question to ListOffsets. The zero value asks for the latest offset.
type OffsetQuery struct {
	set          func(*varvev1.ListOffsetsRequest)
	linearizable bool
}

// Linearizable returns the same question, to be answered as of a moment after it was asked: no append that was
// acknowledged before is missing, through whichever gateway. It costs a read of the table, which all who wait share.
// Otherwise a gateway may answer as of some milliseconds ago.
func (q OffsetQuery) Linearizable() OffsetQuery {
	q.linearizable = true
	return q
}

// OffsetAtOrAfter asks for the first offset, in offset order, whose timestamp is at or after t.
func OffsetAtOrAfter(t time.Time) OffsetQuery { return offsetAtOrAfterMilli(ceilMilli(t)) }

func offsetAtOrAfterMilli(ms int64) OffsetQuery {
	return OffsetQuery{set: func(r *varvev1.ListOffsetsRequest) {
		r.Query = &varvev1.ListOffsetsRequest_AtOrAfter{AtOrAfter: ms}
	}}
}

// OffsetBefore asks for the offset just before the first one at or after t; for the last offset
// when there is no such one. Everything at or below the answer is older than t.
func OffsetBefore(t time.Time) OffsetQuery {
	return OffsetQuery{set: func(r *varvev1.ListOffsetsRequest) {
		r.Query = &varvev1.ListOffsetsRequest_Before{Before: ceilMilli(t)}
	}}
}

// EarliestOffset asks for the first readable offset.
func EarliestOffset() OffsetQuery {
	return OffsetQuery{set: func(r *varvev1.ListOffsetsRequest) {
		r.Query = &varvev1.ListOffsetsRequest_Earliest{Earliest: true}
	}}
}

// LatestOffset asks for the offset after the last record.
func LatestOffset() OffsetQuery {
	return OffsetQuery{set: func(r *varvev1.ListOffsetsRequest) {
		r.Query = &varvev1.ListOffsetsRequest_Latest{Latest: true}
	}}
}

// MaxTimestampOffset asks for the first offset that carries the largest timestamp.
func MaxTimestampOffset() OffsetQuery {
	return OffsetQuery{set: func(r *varvev1.ListOffsetsRequest) {
		r.Query = &varvev1.ListOffsetsRequest_MaxTimestamp{MaxTimestamp: true}
	}}
}

// PartitionOffset is one partition's answer.
type PartitionOffset struct {
	Partition int32
	// Found is false when no record answers the question. Offset is -1 then.
	Found  bool
	Offset int64
	// Timestamp of the record at Offset; zero when there is no record there.
	Timestamp time.Time
	// StartOffset is the first readable offset, EndOffset the one after the last record.
	StartOffset, EndOffset int64
	// Linearizable: the answer is as of a moment after the question, which asked for that.
	Linearizable bool
}

// ListOffsets asks the same question of the given partitions, or of all when none is given. The
// answers are in order of partition.
func (c *Client) ListOffsets(ctx context.Context, topic string, q OffsetQuery, partitions ...int32) ([]PartitionOffset, error) {
	return c.listOffsets(ctx, topic, q, partitions, func([]PartitionOffset) *Error { return nil })
}

// listOffsets asks again, elsewhere, after an answer that check finds fault with.
func (c *Client) listOffsets(ctx context.Context, topic string, q OffsetQuery, partitions []int32, check func([]PartitionOffset) *Error) ([]PartitionOffset, error) {
	req := &varvev1.ListOffsetsRequest{Topic: topic, Partitions: partitions, Linearizable: q.linearizable}
	if q.set != nil {
		q.set(req)
	}
	return call(ctx, c, anyOutcome, func(ctx context.Context, e *endpoint) ([]PartitionOffset, error) {
		res, err := e.log.ListOffsets(ctx, req)
		if err != nil {
			return nil, err
		}
		offsets := offsetsOf(res)
		if fault := check(offsets); fault != nil {
			return nil, fault
		}
		return offsets, nil
	})
}

func offsetsOf(res *varvev1.ListOffsetsResponse) []PartitionOffset {
	out := make([]PartitionOffset, 0, len(res.GetOffsets()))
	for _, o := range res.GetOffsets() {
		out = append(out, PartitionOffset{
			Partition: o.GetPartition(), Found: o.GetFound(), Offset: o.GetOffset(), Timestamp: timeOf(o.GetTimestamp()),
			StartOffset: o.GetStartOffset(), EndOffset: o.GetEndOffset(), Linearizable: res.GetLinearizable(),
		})
	}
	slices.SortFunc(out, func(a, b PartitionOffset) int { return int(a.Partition) - int(b.Partition) })
	return out
}
