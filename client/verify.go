package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

// VerifyOptions say what to verify.
type VerifyOptions struct {
	// Deep also reads the bytes of every batch.
	Deep bool
	// Repair removes what is provably garbage.
	Repair bool
	// Grace is how old, in whole seconds, an uploader must be for its objects to count as orphans. 0: an hour.
	Grace time.Duration
}

// NoPartition is the Partition of a finding that is about none.
const NoPartition = int32(-1)

// VerifyFinding is one break of an invariant, or one piece of garbage.
type VerifyFinding struct {
	// Kind is stable and machine-readable: INDEX_GAP, say.
	Kind string
	// Break: an invariant is broken; else it is garbage, which costs space and nothing else.
	Break bool
	// Topic is a name, or an id when the topic is gone; empty where the finding is about none.
	Topic     string
	Partition int32
	// Object is a key of the bucket, Row one of the table; empty where the finding is about none.
	Object, Row string
	Message     string
	// Repaired: it was removed.
	Repaired bool
}

// VerifySummary counts what was looked at and found.
type VerifySummary struct {
	ClusterID string
	Topics    int64
	// Partitions that have been appended to.
	Partitions int64
	// Entries of the index, Batches and Records in them, all between log start and end.
	Entries, Batches, Records int64
	// Objects are the segments in the bucket, ObjectBytes their size.
	Objects, ObjectBytes int64
	Journals             int64
	// Breaks, and pieces of Garbage of which Repaired were removed.
	Breaks, Garbage, Repaired int64
}

// Verify has a gateway check bucket and table against the invariants, while gateways work on them. report is
// called once a finding, in this goroutine. It takes as long as it takes: ctx bounds it. An error after
// findings were reported leaves them standing; what else is wrong is not known.
func (c *Client) Verify(ctx context.Context, opts VerifyOptions, report func(VerifyFinding)) (VerifySummary, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &varvev1.VerifyRequest{Deep: opts.Deep, Repair: opts.Repair, GraceSeconds: int64(opts.Grace / time.Second)}
	if opts.Grace > 0 && req.GraceSeconds == 0 {
		req.GraceSeconds = 1 // 0 would be the default
	}
	type opened struct {
		stream varvev1connect.ClusterServiceVerifyClientStream
		first  *varvev1.VerifyResponse
	}
	// Nothing was reported before the first response: until then another try is as good.
	o, err := callStream(ctx, c, func(ctx context.Context, e *endpoint) (opened, error) {
		stream, err := e.cluster.Verify(ctx, req)
		if err != nil {
			return opened{}, err
		}
		first, err := stream.Receive()
		if err != nil {
			return opened{}, errors.Join(err, stream.Close())
		}
		return opened{stream, first}, nil
	})
	if err != nil {
		return VerifySummary{}, err
	}
	defer o.stream.Close()
	for m := o.first; ; {
		if s := m.GetSummary(); s != nil {
			return verifySummary(s), nil
		}
		if f := m.GetFinding(); f != nil {
			report(verifyFinding(f))
		}
		if m, err = o.stream.Receive(); errors.Is(err, io.EOF) {
			return VerifySummary{}, fmt.Errorf("verify: %w: the gateway ended it without a summary", ErrUnavailable)
		} else if err != nil {
			return VerifySummary{}, errorOf(err)
		}
	}
}

func verifyFinding(m *varvev1.VerifyFinding) VerifyFinding {
	f := VerifyFinding{Kind: m.GetKind(), Break: m.GetBreak(), Topic: m.GetTopic(), Partition: NoPartition, Object: m.GetObject(),
		Row: m.GetRow(), Message: m.GetMessage(), Repaired: m.GetRepaired()}
	if m.Partition != nil {
		f.Partition = m.GetPartition()
	}
	return f
}

func verifySummary(m *varvev1.VerifySummary) VerifySummary {
	return VerifySummary{ClusterID: m.GetClusterId(), Topics: m.GetTopics(), Partitions: m.GetPartitions(), Journals: m.GetJournals(),
		Entries: m.GetEntries(), Batches: m.GetBatches(), Records: m.GetRecords(), Objects: m.GetObjects(), ObjectBytes: m.GetObjectBytes(),
		Breaks: m.GetBreaks(), Garbage: m.GetGarbage(), Repaired: m.GetRepaired()}
}
