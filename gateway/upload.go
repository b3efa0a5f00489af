package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// start uploads a segment in the background once there is room for it.
func (in *intake) start(ctx context.Context, uploads *sync.WaitGroup, segment *openSegment) error {
	weight := min(segment.bytes, in.g.config.UploadBytes)
	if err := in.uploads.Acquire(ctx, weight); err != nil {
		in.answer(segment, ctx.Err())
		in.abandon(ctx.Err())
		return context.Cause(ctx)
	}
	select {
	case in.slots <- struct{}{}:
	case <-ctx.Done():
		in.answer(segment, ctx.Err())
		in.abandon(ctx.Err())
		return context.Cause(ctx)
	}
	uploads.Go(func() {
		defer func() { <-in.slots; in.uploads.Release(weight) }()
		if err := in.upload(ctx, segment); err != nil {
			in.answer(segment, err)
		}
	})
	return nil
}

// upload puts the segment and has its references judged. It returns an error only when
// the gateway ends; then the outcome of what is unanswered is unknown.
func (in *intake) upload(ctx context.Context, segment *openSegment) error {
	object, err := segment.builder.Build(func(id segments.SpanID) uint64 { return segment.spans[id].previous })
	if err != nil {
		return fmt.Errorf("build segment %d: %w", segment.number, err)
	}
	directory, err := in.put(ctx, object)
	if err != nil {
		return err
	}
	in.g.meters.flushed(len(directory.Spans), object.Size())
	if directory == &object.Directory {
		in.g.reader.fresh.add(object)
	}
	references := make([]*metadata.Reference, len(directory.Spans))
	for i := range directory.Spans {
		references[i] = reference(directory, &directory.Spans[i], nil)
	}
	err = in.g.refer(ctx, references, func(i int, v metadata.Verdict, err error) {
		in.answerSpan(segment, directory.Spans[i].SpanID, v, err)
	})
	if err != nil {
		return err
	}
	in.settled(segment)
	return nil
}

// put uploads until the object is there. What the directory of the object in the
// bucket says is the truth, should it not be ours.
func (in *intake) put(ctx context.Context, object *segments.Object) (*segments.Directory, error) {
	pauses := metadata.DefaultBackOff()
	for {
		err := in.g.store.Put(ctx, object.Key(), object)
		switch {
		case err == nil:
			in.uploaded()
			return &object.Directory, nil
		case errors.Is(err, segments.ErrExists):
			var stored *segments.Directory
			if stored, err = segments.ReadDirectory(ctx, in.g.store, object.Key()); err == nil {
				in.uploaded()
				return stored, nil
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		in.failing.because(err)
		if in.failing.begin() {
			in.g.log.Warn("upload failed; it is tried until it succeeds", "segment", object.Key(), "error", err)
		}
		if err := pause(ctx, pauses); err != nil {
			return nil, err
		}
	}
}

// uploaded notes that the bucket takes objects.
func (in *intake) uploaded() {
	if lasted := in.failing.end(); lasted > 0 {
		in.g.log.Info("uploads succeed again", "after", lasted.Round(time.Millisecond))
	}
}

// reference describes a span to its sequencer; keep, if given, says which batches.
func reference(d *segments.Directory, span *segments.Span, keep func(*segments.BatchInfo) bool) *metadata.Reference {
	ref := &metadata.Reference{
		Partition: metadata.PartitionID{Topic: metadata.TopicID(span.Topic), Number: span.Partition},
		Uploader:  metadata.GatewayID(d.Gateway), Number: d.Number, Previous: span.Previous,
		Batches: make([]metadata.Batch, 0, len(span.Batches)),
	}
	for i := range span.Batches {
		b := &span.Batches[i]
		if keep != nil && !keep(b) {
			continue
		}
		ref.Batches = append(ref.Batches, metadata.Batch{
			Position: b.Position, Size: b.Size, Offsets: b.Offsets, Records: b.Records,
			MinTimestamp: b.MinTimestamp, MaxTimestamp: b.MaxTimestamp, LastTimestamp: b.LastTimestamp, CRC: b.CRC,
			ProducerID: b.ProducerID, ProducerEpoch: b.ProducerEpoch, BaseSequence: b.BaseSequence,
			ExpectedOffset: b.ExpectedOffset, FencingToken: b.FencingToken, HasFencingToken: b.HasFencingToken,
		})
	}
	return ref
}

// refer has references judged, each until there is a verdict, and reports them. It
// returns an error when the gateway ends before.
func (g *Gateway) refer(ctx context.Context, references []*metadata.Reference, judged func(i int, v metadata.Verdict, err error)) error {
	type verdict struct {
		index   int
		verdict metadata.Verdict
		err     error
	}
	pauses := metadata.DefaultBackOff()
	waiting := make([]int, len(references))
	for i := range waiting {
		waiting[i] = i
	}
	for len(waiting) > 0 {
		verdicts := make(chan verdict, len(waiting))
		tickets := make([]*ticket, len(waiting))
		for i, index := range waiting {
			if err := g.intake.brokenOff(references[index].Partition); err != nil {
				// Its chain of numbers has a hole now: it would wait for ever.
				tickets[i] = nil
				verdicts <- verdict{index, metadata.Verdict{}, err}
				continue
			}
			tickets[i] = g.sequencer.refer(references[index], func(v metadata.Verdict, err error) { verdicts <- verdict{index, v, err} })
		}
		g.sequencer.submit(slices.DeleteFunc(tickets, func(t *ticket) bool { return t == nil })...)
		var again []int
		for range waiting {
			var v verdict
			select {
			case v = <-verdicts:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			switch {
			case v.err == nil || errors.Is(v.err, metadata.ErrClosed):
				judged(v.index, v.verdict, v.err)
			case lasting(v.err):
				g.log.Error("a partition cannot be sequenced: appends to it are refused until it is mended and the gateway starts again",
					"partition", references[v.index].Partition.String(), "error", v.err)
				g.intake.breakOff(references[v.index].Partition, v.err)
				judged(v.index, v.verdict, v.err)
			case errors.Is(v.err, metadata.ErrFenced) || errors.Is(v.err, errStopped) || ctx.Err() != nil:
				return v.err
			default:
				g.log.Warn("partition cannot be sequenced yet; it is tried until it can", "partition", references[v.index].Partition.String(), "error", v.err)
				again = append(again, v.index)
			}
		}
		if waiting = again; len(waiting) > 0 {
			if err := pause(ctx, pauses); err != nil {
				return err
			}
		}
	}
	return nil
}

// lasting says that an error will be the same tomorrow.
func lasting(err error) bool {
	return errors.Is(err, metadata.ErrCorrupt) || errors.Is(err, metadata.ErrHole) || errors.Is(err, metadata.ErrTooLarge)
}

// breakOff refuses a partition's appends from now on.
func (in *intake) breakOff(id metadata.PartitionID, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if span := spanOf(id); in.broken[span] == nil {
		in.broken[span] = err
	}
}

func (in *intake) brokenOff(id metadata.PartitionID) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.broken[spanOf(id)]
}

func spanOf(id metadata.PartitionID) segments.SpanID {
	return segments.SpanID{Topic: segments.TopicID(id.Topic), Partition: id.Number}
}
