package gateway

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// forget drops what is known of a partition that takes nothing more, for ever, once
// nothing of it is on its way.
func (in *intake) forget(id segments.SpanID) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if c := in.chains[id]; c != nil {
		c.closed = true
		in.tidyLocked(id, c)
	}
}

func (in *intake) tidyLocked(id segments.SpanID, c *chain) {
	if c.closed && len(c.open) == 0 {
		delete(in.chains, id)
	}
}

// turn says whether a reference of a segment may be sent now; if not, send is called when it may. One that
// is judged by number alone goes when nothing before it is open: it would void that.
func (in *intake) turn(number uint64, id segments.SpanID, byNumber bool, send func()) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	c := in.chains[id]
	return c == nil || c.enter(number, byNumber, time.Now(), send)
}

// settleSpan notes that a reference of a segment has its verdict, and sends those whose turn it is.
func (in *intake) settleSpan(number uint64, id segments.SpanID) {
	in.mu.Lock()
	var sends []func()
	if c := in.chains[id]; c != nil {
		sends = c.settle(number, time.Now())
		in.tidyLocked(id, c)
	}
	in.mu.Unlock()
	for _, send := range sends {
		send()
	}
}

// answerSpan tells the appends of one span what became of them.
func (in *intake) answerSpan(segment *openSegment, span *openSpan, v metadata.Verdict) {
	for i, a := range span.appends {
		result := appended{start: v.Start}
		if i < len(v.Batches) {
			result.verdict = v.Batches[i]
		} else {
			result.err = unknownOutcome("the answer is no longer kept", nil)
			// Its file stays: that a batch is in it does no harm when it was appended.
			segment.damaged = segment.damaged || a.info.Ack == segments.AckBuffered
		}
		in.finish(a, result)
	}
}

// answerForeign tells the appends of a span under whose segment's name another object lies, which has
// these batches of the partition.
func (in *intake) answerForeign(segment *openSegment, span *openSpan, batches []segments.BatchInfo, v metadata.Verdict) {
	for _, a := range span.appends {
		result := appended{start: v.Start}
		i := slices.IndexFunc(batches, func(b segments.BatchInfo) bool { return b.CRC == a.info.CRC && int64(b.Size) == a.size })
		if i >= 0 && i < len(v.Batches) {
			result.verdict = v.Batches[i]
			batches[i].Size = 0 // another one like it is another one
		} else {
			result.err = unknownOutcome("another object lies under the name of its segment", nil)
			segment.damaged = segment.damaged || a.info.Ack == segments.AckBuffered && i < 0
		}
		in.finish(a, result)
	}
}

// failSpan tells the appends of one span that they failed.
func (in *intake) failSpan(span *openSpan, err error) {
	for _, a := range span.appends {
		in.finish(a, appended{err: err})
	}
}

func (in *intake) finish(a *appending, result appended) {
	if result.err == nil && result.verdict.Outcome == metadata.Accepted {
		in.g.meters.appended(int(a.info.Records), a.size)
		in.g.reader.blocks.cold.tailMoved()
	} else if a.info.Ack == segments.AckBuffered {
		in.g.log.Error("a batch that was acked as buffered was not appended", "outcome", result.verdict.Outcome.String(), "error", result.err)
	}
	if a.info.Ack == segments.AckBuffered {
		in.buffered.Add(-int64(a.info.Records))
	}
	in.release(a.size)
	a.settle(result)
}

// answer tells all appends of a segment that have no answer yet.
func (in *intake) answer(segment *openSegment, err error) {
	for _, span := range segment.spans {
		for _, a := range span.appends {
			in.release(a.size)
			a.settle(appended{err: unknownOutcome("the gateway stopped before the commit", err)})
		}
		span.appends = nil
	}
	if segment.buffer != nil {
		if err := segment.buffer.Close(); err != nil {
			in.g.log.Warn("buffer file not closed", "error", err)
		}
	}
}

// keep leaves the buffer file for the next start to try again. All of it is on disk
// first: appends that still wait for that are acked, and found then.
func (s *openSegment) keep() error {
	return errors.Join(s.buffer.Sync(context.Background(), s.buffer.Bytes()), s.buffer.Close())
}

// settled ends a segment: every span of it has its verdict.
func (in *intake) settled(segment *openSegment) {
	if segment.buffer != nil {
		end := segment.buffer.Remove
		if segment.damaged {
			end = segment.keep
			in.kept.Store(true)
		}
		if err := end(); err != nil {
			in.g.log.Warn("buffer file not removed; the next start finds it committed", "segment", segment.number, "error", err)
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if segment.buffer != nil && segment.damaged && (in.keptFrom == 0 || segment.number < in.keptFrom) {
		in.keptFrom = segment.number
	}
	in.settledLocked(segment)
}

func (in *intake) settledLocked(segment *openSegment) {
	delete(in.unsettled, segment.number)
	if in.closing && len(in.unsettled) == 0 {
		select {
		case <-in.idle:
		default:
			close(in.idle)
		}
	}
}

// floor is the lowest number that is not settled; buffered is how many records were acked
// as buffered, or are about to be, and are not settled.
func (in *intake) floor() (floor, buffered uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	floor = in.number + 1
	if in.keptFrom > 0 {
		floor = in.keptFrom
	}
	for number := range in.unsettled {
		floor = min(floor, number)
	}
	return floor, uint64(in.buffered.Load())
}
