package gateway

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/verify"
)

// maxGraceSeconds keeps a grace within what a time.Duration holds.
const maxGraceSeconds = 100 * 365 * 24 * 3600

// Verify checks bucket and table against the invariants, while this gateway and others work on them.
func (s *clusterService) Verify(ctx context.Context, r *varvev1.VerifyRequest, stream varvev1connect.ClusterServiceVerifyServerStream) error {
	if seconds := r.GetGraceSeconds(); seconds < 0 || seconds > maxGraceSeconds {
		return refuse(connect.CodeInvalidArgument, reasonInvalid, "a grace of %d seconds; 0 to %d can be had", seconds, int64(maxGraceSeconds))
	}
	// Findings may be hours away: whoever waits for them knows by the headers that they are looked for.
	if err := stream.SendHeaders(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	config := verify.Config{Store: s.g.store, Table: s.g.table, Deep: r.GetDeep(), Repair: r.GetRepair(),
		Grace: time.Duration(r.GetGraceSeconds()) * time.Second, Now: s.g.now, Acknowledge: s.g.Acknowledge}
	summary, err := verify.Run(ctx, config, func(f verify.Finding) {
		if err := stream.Send(&varvev1.VerifyResponse{Finding: findingMessage(&f)}); err != nil {
			cancel(err) // nobody listens any more
		}
	})
	if errors.Is(err, verify.ErrMoving) {
		return refuse(connect.CodeAborted, reasonBusy, "%s; run again", err).withCause(err)
	}
	if err != nil {
		return err
	}
	return stream.Send(&varvev1.VerifyResponse{Summary: summaryMessage(&summary)})
}

func findingMessage(f *verify.Finding) *varvev1.VerifyFinding {
	m := &varvev1.VerifyFinding{Kind: string(f.Kind), Break: f.Kind.Break(), Topic: f.Topic, Object: f.Object, Row: f.Row,
		Message: f.Message, Repaired: f.Repaired}
	if f.Partition != verify.NoPartition {
		m.Partition = &f.Partition
	}
	return m
}

func summaryMessage(s *verify.Summary) *varvev1.VerifySummary {
	return &varvev1.VerifySummary{ClusterId: s.ClusterID, Topics: s.Topics, Partitions: s.Partitions, Entries: s.Entries,
		Objects: s.Objects, ObjectBytes: s.ObjectBytes, Batches: s.Batches, Records: s.Records, Journals: s.Journals,
		Breaks: s.Breaks, Garbage: s.Garbage, Repaired: s.Repaired}
}
