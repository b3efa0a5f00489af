package gateway

import (
	"cmp"
	"context"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
)

// readAhead is how far a partition is being read for a reader that goes through it, before it asks for that.
type readAhead struct {
	from, to int64 // offsets of what was begun last
	bytes    int64 // that the next one may have
	counted  bool  // among those that go through old data
}

// settle has the next read of a partition go further ahead if the last one was not far enough: the reader is back before
// it is done.
func (c *consumer) settle(p *position) {
	if c.fetching() && p.next >= p.ahead.from && p.next < p.ahead.to {
		p.ahead.bytes = min(2*p.ahead.bytes, 1<<30)
	}
}

// fetching says that what is read ahead is still under way.
func (c *consumer) fetching() bool {
	if c.ahead == nil {
		return false
	}
	select {
	case <-c.ahead:
		return false
	default:
		return true
	}
}

// readAhead begins to read what a reader wants next that came to offset next and goes on there: one that reads on
// where its last read ended. It ends with ctx.
//
// It reads ahead for the reader's other partitions at the same time, since they lie side by side in a segment: what is near
// each other comes with one GET.
func (c *consumer) readAhead(ctx context.Context, p *position, v *metadata.View, next int64) {
	r := c.g.reader
	if next >= v.Next {
		if p.caughtUp && p.next < next {
			r.blocks.cold.tailMoved()
		}
		p.caughtUp, p.view = true, nil
		c.endAhead(p)
		return
	}
	p.caughtUp, p.view = false, v
	if next >= p.end {
		p.view = nil
		c.endAhead(p)
	}
	if !c.follows || !p.told || next >= p.end {
		return
	}
	if !p.ahead.counted {
		p.ahead.counted = true
		c.goingThrough++
		r.goingThrough.Add(1)
	}
	p.next = next
	room := r.mostAhead(c.goingThrough)
	if room == 0 || p.ahead.to-next > (p.ahead.to-p.ahead.from)/2 || c.fetching() {
		return
	}
	ctx = bill.ForTopic(ctx, v.Partition.Topic)
	ranges := c.planAhead(ctx, p, room)
	if len(ranges) == 0 {
		return
	}
	ranges = neighbours(ranges)
	if c.dense.note(ranges) {
		widen(ranges)
	}
	done := make(chan struct{})
	c.ahead = done
	c.aheads.Go(func() {
		defer close(done)
		r.prepare(ctx, ranges)
	})
}

// planAhead picks what is to be read ahead for partition p and for the others in their turn, until room, in bytes, is used up.
func (c *consumer) planAhead(ctx context.Context, p *position, room int64) (ranges []wanted) {
	most := room / int64(max(c.goingThrough, 1))
	first := slices.Index(c.positions, p)
	for i := range c.positions {
		q := c.positions[(first+i)%len(c.positions)]
		a := &q.ahead
		if q.view == nil || q.done || room <= 0 || a.to-q.next > a.to-a.from { // all that was read ahead for it last is there
			continue
		}
		a.bytes = max(min(max(a.bytes, int64(c.maxBytes)), most), 1)
		from := max(q.next, a.to)
		found, to, err := c.g.reader.plan(ctx, q.view, filter{from: from, until: q.end, times: c.times}, min(q.end, q.view.Next), int(a.bytes))
		if err != nil || len(found) == 0 {
			continue // whoever reads it will be told
		}
		a.from, a.to = from, to
		for _, w := range found {
			room -= w.length
		}
		ranges = append(ranges, found...)
	}
	return ranges
}

// mostPassed is in how many turns on end others of a reader's partitions may go before one.
const mostPassed = 16

// order finds out which of the segments that the reader goes through is the oldest, of each gateway's.
func (c *consumer) order() {
	if c.goingThrough < 2 {
		return
	}
	if c.oldest == nil {
		c.oldest = make(map[metadata.GatewayID]uint64)
	}
	clear(c.oldest)
	for _, p := range c.positions {
		if number, ok := c.oldest[p.at.gateway]; p.view != nil && !p.done && (!ok || p.at.number < number) {
			c.oldest[p.at.gateway] = p.at.number
		}
	}
}

// passes lets those of the reader's partitions go first that are in older segments than p, for some turns: a segment has much of one and little
// of another, and if all went on by as many bytes each, they would come to it so far apart that it is out of memory by then.
func (c *consumer) passes(p *position) bool {
	if c.goingThrough < 2 || p.view == nil || p.at.number <= c.oldest[p.at.gateway] || p.passed >= mostPassed {
		return false
	}
	p.passed++
	return true
}

// neighbours joins ranges of a segment between which less is left out than they have. They come in the order in which
// they begin in the offsets, those of one segment in that of their places.
func neighbours(ranges []wanted) (joined []wanted) {
	turn := make(map[segmentName]int)
	for _, w := range ranges {
		name := segmentName{w.chunk.Gateway, w.chunk.Number}
		if _, ok := turn[name]; !ok {
			turn[name] = len(turn)
		}
	}
	slices.SortFunc(ranges, func(a, b wanted) int {
		return cmp.Or(cmp.Compare(turn[segmentName{a.chunk.Gateway, a.chunk.Number}], turn[segmentName{b.chunk.Gateway, b.chunk.Number}]),
			cmp.Compare(a.chunk.Position, b.chunk.Position))
	})
	for _, w := range ranges {
		w.asked = w.length
		if n := len(joined); n > 0 {
			last := &joined[n-1]
			span := w.chunk.Position + w.length - last.chunk.Position
			if last.chunk.Gateway == w.chunk.Gateway && last.chunk.Number == w.chunk.Number && span <= 2*(last.asked+w.length) {
				last.length = max(last.length, span)
				last.asked += w.length
				continue
			}
		}
		joined = append(joined, w)
	}
	return joined
}

const (
	// denseSegments is of how many segments it is remembered how much a reader wants of them, and denseFrom the share from which on they are
	// fetched whole: partitions come to a segment at different times, and nothing but the past tells that they will.
	denseSegments = 16
	denseFrom     = 0.25
)

// density is how much a reader wants of the segments that it comes through.
type density struct {
	asked map[segmentName]*extent
	order []segmentName // oldest first
}

type extent struct{ asked, to int64 } // bytes, and where the last of them ends

// note adds ranges, and says whether the reader wants much of its segments.
func (d *density) note(ranges []wanted) bool {
	if d.asked == nil {
		d.asked = make(map[segmentName]*extent)
	}
	for _, w := range ranges {
		name := segmentName{w.chunk.Gateway, w.chunk.Number}
		e := d.asked[name]
		if e == nil {
			e = new(extent)
			d.asked[name], d.order = e, append(d.order, name)
		}
		e.asked += w.asked
		e.to = max(e.to, w.chunk.Position+w.length)
	}
	for len(d.order) > denseSegments {
		delete(d.asked, d.order[0])
		d.order = d.order[1:]
	}
	share := 0.0
	for _, name := range d.order[:len(d.order)/2] { // the latest are not yet asked for by all
		e := d.asked[name]
		share += float64(e.asked) / float64(max(e.to, fetchBytes))
	}
	return len(d.order) >= 4 && share >= denseFrom*float64(len(d.order)/2)
}

// widen has ranges begin and end where fetches do.
func widen(ranges []wanted) {
	for i := range ranges {
		w := &ranges[i]
		end := (w.chunk.Position + w.length + fetchBytes - 1) / fetchBytes * fetchBytes
		w.chunk.Position = w.chunk.Position / fetchBytes * fetchBytes
		w.length = end - w.chunk.Position
	}
}

// endAhead notes that a reader does not go through old data any more.
func (c *consumer) endAhead(p *position) {
	if p.ahead.counted {
		p.ahead.counted = false
		c.goingThrough--
		c.g.reader.goingThrough.Add(-1)
	}
}

// mostAhead is how much may be read ahead for one reader of so many partitions, in bytes: what is read ahead for all shall be in the cache still
// when they come to it.
func (r *reader) mostAhead(partitions int) int64 {
	config := &r.g.config
	if r.blocks.cache == nil || config.AheadBytes <= 0 {
		return 0
	}
	share := r.blocks.cache.Recent() / 4 * int64(partitions) / max(r.goingThrough.Load(), 1)
	if share < int64(config.CacheBlockBytes) {
		return 0
	}
	return min(config.AheadBytes*int64(partitions), share)
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
