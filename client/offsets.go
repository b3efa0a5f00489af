package client

import (
	"context"
	"slices"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// OffsetQuery is a question to ListOffsets. The zero value asks for the latest offset.
type OffsetQuery struct {
	set func(*varvev1.ListOffsetsRequest)
}

// OffsetAtOrAfter asks for the first offset, in offset order, whose timestamp is at or after t.
func OffsetAtOrAfter(t time.Time) OffsetQuery { return offsetAtOrAfterMilli(ceilMilli(t)) }

func offsetAtOrAfterMilli(ms int64) OffsetQuery {
	return OffsetQuery{func(r *varvev1.ListOffsetsRequest) {
		r.Query = &varvev1.ListOffsetsRequest_AtOrAfter{AtOrAfter: ms}
	}}
}

// OffsetBefore asks for the offset just before the first one at or after t; for the last offset
// when there is no such one. Everything at or below the answer is older than t.
func OffsetBefore(t time.Time) OffsetQuery {
	return OffsetQuery{func(r *varvev1.ListOffsetsRequest) {
		r.Query = &varvev1.ListOffsetsRequest_Before{Before: ceilMilli(t)}
	}}
}

// EarliestOffset asks for the first readable offset.
func EarliestOffset() OffsetQuery {
	return OffsetQuery{func(r *varvev1.ListOffsetsRequest) {
		r.Query = &varvev1.ListOffsetsRequest_Earliest{Earliest: true}
	}}
}

// LatestOffset asks for the offset after the last record.
func LatestOffset() OffsetQuery {
	return OffsetQuery{func(r *varvev1.ListOffsetsRequest) {
		r.Query = &varvev1.ListOffsetsRequest_Latest{Latest: true}
	}}
}

// MaxTimestampOffset asks for the first offset that carries the largest timestamp.
func MaxTimestampOffset() OffsetQuery {
	return OffsetQuery{func(r *varvev1.ListOffsetsRequest) {
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
}

// ListOffsets asks the same question of the given partitions, or of all when none is given. The
// answers are in order of partition.
func (c *Client) ListOffsets(ctx context.Context, topic string, q OffsetQuery, partitions ...int32) ([]PartitionOffset, error) {
	req := &varvev1.ListOffsetsRequest{Topic: topic, Partitions: partitions}
	if q.set != nil {
		q.set(req)
	}
	res, err := call(ctx, c, anyOutcome, func(ctx context.Context, e *endpoint) (*varvev1.ListOffsetsResponse, error) {
		return e.log.ListOffsets(ctx, req)
	})
	if err != nil {
		return nil, err
	}
	out := make([]PartitionOffset, 0, len(res.GetOffsets()))
	for _, o := range res.GetOffsets() {
		out = append(out, PartitionOffset{
			Partition: o.GetPartition(), Found: o.GetFound(), Offset: o.GetOffset(), Timestamp: timeOf(o.GetTimestamp()),
			StartOffset: o.GetStartOffset(), EndOffset: o.GetEndOffset(),
		})
	}
	slices.SortFunc(out, func(a, b PartitionOffset) int { return int(a.Partition) - int(b.Partition) })
	return out, nil
}
