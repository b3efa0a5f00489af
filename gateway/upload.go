package gateway

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/varvelog/varve/bill"
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
		leave := sync.OnceFunc(func() { <-in.slots; in.uploads.Release(weight) })
		defer leave()
		directory, own, err := in.upload(ctx, segment)
		defer time.AfterFunc(slotTime, leave).Stop()
		switch {
		case err != nil:
		case own:
			err = in.refer(ctx, segment, directory)
		default:
			err = in.referForeign(ctx, segment, directory)
		}
		if err != nil {
			in.answer(segment, err)
		}
	})
	return nil
}

// upload puts the segment, and returns what the object has; own says that it is this one. It
// returns an error only when the gateway ends; then the outcome of what is unanswered is unknown.
func (in *intake) upload(ctx context.Context, segment *openSegment) (d *segments.Directory, own bool, err error) {
	object, err := segment.builder.Build(func(id segments.SpanID) uint64 { return segment.spans[id].previous })
	if err != nil {
		return nil, false, fmt.Errorf("build segment %d: %w", segment.number, err)
	}
	stored, err := in.g.put(ctx, object)
	if err != nil {
		return nil, false, err
	}
	segment.builder = nil // its bytes are in the bucket
	if stored != &object.Directory && !reflect.DeepEqual(stored, &object.Directory) {
		in.g.log.Error("another object lies under the name of a segment: the buffer of this gateway was recovered elsewhere while it ran", "segment", object.Key())
		return stored, false, nil
	}
	in.g.meters.flushed(len(object.Directory.Spans), object.Size())
	bodies := segment.bodies
	if segment.bodies = nil; stored != &object.Directory || object.Repeated() {
		bodies = nil // a try that was given up may still be read
	}
	in.g.reader.fresh.add(object, bodies)
	return &object.Directory, true, nil
}

// refer has the segment's references judged. It returns an error only when the gateway ends.
func (in *intake) refer(ctx context.Context, segment *openSegment, directory *segments.Directory) error {
	references := make([]*metadata.Reference, len(directory.Spans))
	for i := range directory.Spans {
		references[i] = reference(directory, &directory.Spans[i], nil)
	}
	return in.judge(ctx, segment, references, func(i int, span *openSpan, v metadata.Verdict) {
		in.g.ledger.Appended(references[i].Partition.Topic, span.accepted(v))
		in.answerSpan(segment, span, v)
	})
}

// accepted sums up what a verdict appends.
func (s *openSpan) accepted(v metadata.Verdict) (sum bill.Batches) {
	for i, a := range s.appends {
		if i < len(v.Batches) && v.Batches[i].Outcome == metadata.Accepted {
			sum.Bytes += a.size
			sum.Records += int64(a.info.Records)
		}
	}
	return sum
}

// referForeign settles a segment under whose name another object lies. That one is the truth: what it
// has is judged, by number alone as its uploader had it, which voids the number where it has nothing.
// Appends that are in it are told its verdicts; of the others nobody knows.
func (in *intake) referForeign(ctx context.Context, segment *openSegment, stored *segments.Directory) error {
	var references []*metadata.Reference
	var spans []*segments.Span
	for id := range segment.spans {
		span := &segments.Span{SpanID: id}
		if found, ok := stored.Span(id); ok {
			span = &found
		}
		ref := reference(stored, span, nil)
		ref.ByNumber = true
		references, spans = append(references, ref), append(spans, span)
	}
	return in.judge(ctx, segment, references, func(i int, span *openSpan, v metadata.Verdict) {
		in.answerForeign(segment, span, spans[i].Batches, v)
	})
}

// judge has references judged, one for each span, and tells its appends by answer.
func (in *intake) judge(ctx context.Context, segment *openSegment, references []*metadata.Reference, answer func(i int, span *openSpan, v metadata.Verdict)) error {
	turn := func(i int, send func()) bool {
		return in.turn(segment.number, spanOf(references[i].Partition), references[i].ByNumber, send)
	}
	err := in.g.router.refer(ctx, references, turn, func(i int, v metadata.Verdict, err error) {
		if errors.As(err, new(*uploaderClosed)) {
			err = unknownOutcome("the others no longer take anything of this gateway's id", err)
			segment.damaged = true // what was acked as buffered stays on disk
		}
		segment.damaged = segment.damaged || err != nil && lasting(err)
		id := spanOf(references[i].Partition)
		span := segment.spans[id]
		if err != nil {
			in.failSpan(span, err)
		} else {
			answer(i, span, v)
		}
		span.appends = nil
		in.settleSpan(segment.number, id)
		if errors.Is(err, metadata.ErrClosed) {
			in.forget(id)
		}
	})
	if err != nil {
		return err
	}
	in.settled(segment)
	return nil
}

// put uploads until the object is there. What the directory of the object in the
// bucket says is the truth, should it not be ours.
func (g *Gateway) put(ctx context.Context, object *segments.Object) (*segments.Directory, error) {
	pauses := metadata.DefaultBackOff()
	var watching sync.Mutex
	there, told := false, false // guarded by watching: nobody calls it failing once it is there, or has a better reason
	hangs := time.AfterFunc(slowUpload+time.Duration(object.Size()/slowestUpload)*time.Second, func() {
		watching.Lock()
		defer watching.Unlock()
		if !there && !told {
			g.uploadFails(object.Key(), errors.New("the bucket does not answer, or throttles"))
		}
	})
	defer hangs.Stop()
	for {
		d, err := g.tryPut(ctx, object)
		if err == nil {
			watching.Lock()
			there = true
			watching.Unlock()
			g.uploaded()
			return d, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		watching.Lock()
		told = true
		watching.Unlock()
		g.uploadFails(object.Key(), err)
		if err := pause(ctx, pauses); err != nil {
			return nil, err
		}
	}
}

// tryPut uploads once, and returns what the object in the bucket has.
func (g *Gateway) tryPut(ctx context.Context, object *segments.Object) (*segments.Directory, error) {
	err := g.store.Put(ctx, object.Key(), object)
	if errors.Is(err, segments.ErrExists) {
		return segments.ReadDirectory(ctx, g.store, object.Key())
	}
	return &object.Directory, err
}

// slowUpload is after how long an upload counts as failing, with a second more for each so many bytes.
const (
	slowUpload    = 5 * time.Second
	slowestUpload = 1 << 20
)

// uploadFails notes that the bucket does not take an object.
func (g *Gateway) uploadFails(key string, err error) {
	g.failing.because(err)
	if g.failing.begin() {
		g.log.Warn("upload failed; it is tried until it succeeds", "segment", key, "error", err)
	}
}

// uploaded notes that the bucket takes objects.
func (g *Gateway) uploaded() {
	if lasted := g.failing.end(); lasted > 0 {
		g.log.Info("uploads succeed again", "after", lasted.Round(time.Millisecond))
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

// lasting says that an error will be the same tomorrow.
func lasting(err error) bool {
	return errors.Is(err, metadata.ErrCorrupt) || errors.Is(err, metadata.ErrHole) || errors.Is(err, metadata.ErrTooLarge)
}

func spanOf(id metadata.PartitionID) segments.SpanID {
	return segments.SpanID{Topic: segments.TopicID(id.Topic), Partition: id.Number}
}

func partitionOfSpan(id segments.SpanID) metadata.PartitionID {
	return metadata.PartitionID{Topic: metadata.TopicID(id.Topic), Number: id.Partition}
}
