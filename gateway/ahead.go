package gateway

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/metadata"
)

// readAhead is what is being read for a reader that goes through a partition, before it asks for it.
type readAhead struct {
	done     chan struct{} // closed when it is there; nil: none was begun
	from, to int64         // offsets
	bytes    int64         // that it may read
	counted  bool          // among those that go through old data
}

// settle has the next read go further ahead if this one was not far enough: the reader is back before it is done.
func (p *position) settle() {
	if p.ahead.done == nil {
		return
	}
	select {
	case <-p.ahead.done:
	default:
		p.ahead.bytes = min(2*p.ahead.bytes, 1<<30)
	}
}

// readAhead begins to read what a reader wants next that came to offset next and goes on there: one that reads on
// where its last read ended. It ends with ctx.
func (c *consumer) readAhead(ctx context.Context, p *position, v *metadata.View, next int64) {
	r := c.g.reader
	if next >= v.Next {
		if p.caughtUp && p.next < next {
			r.blocks.cold.tailMoved()
		}
		p.caughtUp = true
		p.endAhead(r)
		return
	}
	p.caughtUp = false
	a := &p.ahead
	if !a.counted && c.follows && p.told {
		a.counted = true
		r.goingThrough.Add(1)
	}
	most := r.mostAhead()
	if !c.follows || most == 0 || !p.told || next >= p.end || a.under(next) {
		return
	}
	a.bytes = min(max(a.bytes, int64(c.maxBytes)), most)
	a.from = max(next, a.to)
	ranges, to, err := r.plan(ctx, v, filter{from: a.from, until: p.end, times: c.times}, min(p.end, v.Next), int(a.bytes))
	if err != nil || len(ranges) == 0 {
		return // whoever reads it will be told
	}
	a.to = to
	done := make(chan struct{})
	a.done = done
	c.aheads.Go(func() {
		defer close(done)
		r.prepare(ctx, ranges)
	})
}

// under says that enough is under way for a reader that came to offset next, or is there and not yet read.
func (a *readAhead) under(next int64) bool {
	if a.done == nil {
		return false
	}
	select {
	case <-a.done:
		return a.to-next > (a.to-a.from)/2
	default:
		return true
	}
}

// endAhead notes that a reader does not go through old data any more.
func (p *position) endAhead(r *reader) {
	if p.ahead.counted {
		p.ahead.counted = false
		r.goingThrough.Add(-1)
	}
}

// mostAhead is how much may be read ahead for one reader, in bytes: what is read ahead for all shall be in the cache still
// when they come to it.
func (r *reader) mostAhead() int64 {
	config := &r.g.config
	if r.blocks.cache == nil || config.AheadBytes <= 0 {
		return 0
	}
	share := r.blocks.cache.Recent() / (4 * max(r.goingThrough.Load(), 1))
	if share < int64(config.CacheBlockBytes) {
		return 0
	}
	return min(config.AheadBytes, share)
}

// prepare has ranges in the cache. What fails is told to whoever reads it.
func (r *reader) prepare(ctx context.Context, ranges []wanted) {
	var group errgroup.Group
	group.SetLimit(readsAtOnce)
	for _, w := range ranges {
		if r.fresh.has(segmentName{w.chunk.Gateway, w.chunk.Number}) {
			continue
		}
		group.Go(func() error {
			_ = r.blocks.cache.Prepare(ctx, r.g.objectKey(w.chunk), w.chunk.Position, int(w.length))
			return nil
		})
	}
	_ = group.Wait() // there are none
}
