package client

import (
	"context"
	"errors"
	"io"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

// CompactOptions say what to merge.
type CompactOptions struct {
	// Topic; empty: all.
	Topic string
	// DryRun says what would be merged; nothing is.
	DryRun bool
	// Wait for the passes to end. Without it they go on, and there are no reports.
	Wait bool
}

// Compacted is what one gateway made of it.
type Compacted struct {
	GatewayID string
	// Error is why it could not do its share; empty when it did.
	Error string
	// Partitions that were looked at, Merged those of which something was, or would be, merged.
	Partitions, Merged int64
	// Segments are the new ones, Bytes those of batches in them.
	Segments, Bytes int64
	// Entries of the index were replaced by Into. Moved changed meanwhile and stay as they are until the next pass.
	Entries, Into, Moved int64
	// Failed are partitions of which something could not be read or written; they are tried again.
	Failed   int64
	SetAside []DamagedSpan
	// Dropped are records that compaction by key took out; not told of a dry run.
	Dropped int64
}

// DamagedSpan is an index entry whose bytes are not there, or not what the index says. It stays as it is.
type DamagedSpan struct {
	Topic           string
	Partition       int32
	First, End      int64 // offsets, End exclusive
	Object, Problem string
}

// Compact has all gateways that merge small segments do so now, whatever their age. report is called once a gateway, in
// this goroutine. It takes as long as it takes: ctx bounds it.
func (c *Client) Compact(ctx context.Context, opts CompactOptions, report func(Compacted)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &varvev1.CompactRequest{Topic: opts.Topic, DryRun: opts.DryRun, Wait: opts.Wait}
	stream, err := callStream(ctx, c, func(ctx context.Context, e *endpoint) (varvev1connect.ClusterServiceCompactClientStream, error) {
		return e.cluster.Compact(ctx, req)
	})
	if err != nil {
		return err
	}
	defer stream.Close()
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errorOf(err)
		}
		report(compactedOf(m))
	}
}

func compactedOf(m *varvev1.CompactResponse) Compacted {
	r := m.GetReport()
	out := Compacted{GatewayID: m.GetGatewayId(), Error: m.GetError(), Partitions: r.GetPartitions(), Merged: r.GetMerged(), Segments: r.GetSegments(),
		Bytes: r.GetBytes(), Entries: r.GetEntries(), Into: r.GetInto(), Moved: r.GetMoved(), Failed: r.GetFailed(), Dropped: r.GetDropped()}
	for _, s := range r.GetSetAside() {
		out.SetAside = append(out.SetAside, DamagedSpan{s.GetTopic(), s.GetPartition(), s.GetFirstOffset(), s.GetEndOffset(), s.GetObject(), s.GetProblem()})
	}
	return out
}
