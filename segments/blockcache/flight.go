package blockcache

import (
	"context"
	"sync"

	"github.com/varvelog/varve/segments"
)

// flight is a fetch of one block, or of one piece, for all who want it.
type flight struct {
	place place
	run   *run
	done  chan struct{}
	// The cache's mutex guards who waits.
	waiting int
	// Set before done is closed. The block has a reference for those who wait.
	block *block
	err   error
}

// run is flights of neighbouring blocks that one fetch brings.
type run struct {
	flights []*flight
	waiting int // on all of its flights
	ctx     context.Context
	cancel  context.CancelFunc
	hurry   func() // closes hurried
	hurried chan struct{}
}

// gather fetches the parts that were not hits, or waits for those who do.
func (c *Cache) gather(ctx context.Context, object string, wants []want, hurry bool) (err error) {
	c.board(ctx, object, wants, hurry)
	for i := range wants {
		w := &wants[i]
		if w.flight == nil {
			continue
		}
		if err == nil {
			select {
			case <-w.flight.done:
				if err = w.flight.err; err == nil {
					w.copy(w.flight.block, w.skip)
				}
			case <-ctx.Done():
				err = segments.Interrupted(ctx)
			}
		}
		c.leave(w.flight)
	}
	return err
}

// board joins the flights that bring the missing parts, and begins those that nobody has begun.
func (c *Cache) board(ctx context.Context, object string, wants []want, hurry bool) {
	var runs []*run
	begun := 0
	c.mu.Lock()
	for i := range wants {
		w := &wants[i]
		if w.got >= 0 {
			continue
		}
		c.counts.Misses.Add(1)
		if c.joins(c.whole(object, w), w, w.at, hurry) || c.isSmall(w) && c.joins(w.piece(object), w, 0, hurry) {
			c.counts.Joined.Add(1)
			continue
		}
		// Somebody may have brought it since we looked.
		if w.got = 0; c.take(c.whole(object, w), w, w.at) {
			continue
		}
		p, skip := c.whole(object, w), w.at
		if c.alone(object, w) {
			p, skip = w.piece(object), 0
		}
		runs = c.begin(ctx, runs, p, hurry)
		last := runs[len(runs)-1]
		w.flight, w.skip = last.flights[len(last.flights)-1], skip
		w.flight.waiting++
		last.waiting++
		if next := i + 1; skip == w.at && p.length == c.config.BlockBytes && c.popular(p, begun) && (next == len(wants) || wants[next].got >= 0) {
			runs = c.extend(ctx, runs, p, hurry)
		}
		begun++
	}
	c.mu.Unlock()
	for _, r := range runs {
		c.flying.Go(func() { c.fly(r) })
	}
}

// joins waits on a flight that is under way. The caller holds mu.
func (c *Cache) joins(p place, w *want, skip int, hurry bool) bool {
	f := c.flights[p]
	if f == nil {
		return false
	}
	w.flight, w.skip = f, skip
	f.waiting++
	f.run.waiting++
	if hurry {
		f.run.hurry()
	}
	return true
}

// begin adds a flight to the last run, if it lies right behind it, or to one of its own. The caller holds mu.
func (c *Cache) begin(ctx context.Context, runs []*run, p place, hurry bool) []*run {
	f := &flight{place: p, done: make(chan struct{})}
	c.flights[p] = f
	if n := len(runs); n > 0 {
		r := runs[n-1]
		last := r.flights[len(r.flights)-1].place
		if p.length == c.config.BlockBytes && last.length == p.length && last.offset+int64(last.length) == p.offset &&
			p.offset%int64(c.config.FetchBytes) != 0 {
			f.run = r
			r.flights = append(r.flights, f)
			return runs
		}
	}
	r := &run{flights: []*flight{f}, hurried: make(chan struct{})}
	f.run = r
	r.hurry = sync.OnceFunc(func() { close(r.hurried) })
	if hurry {
		r.hurry()
	}
	// The fetch is everybody's who waits: it ends with the last of them, not with the first.
	r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return append(runs, r)
}

// popular says that half of the blocks that one fetch can bring are there, or on their way, beside the number that
// this read has begun: it looks as if all of them were wanted. The caller holds mu.
func (c *Cache) popular(p place, own int) bool {
	size, span := int64(c.config.BlockBytes), int64(c.config.FetchBytes)
	blocks, there := int(span/size), -1-own
	for at := p.offset / span * span; at < p.offset/span*span+span; at += size {
		if c.has(place{p.object, at, p.length}) {
			there++
		}
	}
	return 2*there >= blocks
}

// has says whether a block is there, or on its way. The caller holds mu.
func (c *Cache) has(p place) bool {
	if c.flights[p] != nil || c.recent.has(p) {
		return true
	}
	_, kept := c.kept.GetEntryQuietly(p)
	return kept
}

// extend adds the blocks behind a block to its run, up to one that is there. The caller holds mu.
func (c *Cache) extend(ctx context.Context, runs []*run, p place, hurry bool) []*run {
	for p.offset += int64(p.length); p.offset%int64(c.config.FetchBytes) != 0 && !c.has(p); p.offset += int64(p.length) {
		runs = c.begin(ctx, runs, p, hurry)
	}
	return runs
}

// leave ends the wait of one reader.
func (c *Cache) leave(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.waiting--
	f.run.waiting--
	if f.waiting == 0 && f.block != nil {
		f.block.release()
	}
	if f.run.waiting == 0 {
		f.run.cancel()
		c.forget(f.run) // nobody must join what is given up
	}
}

// forget takes the flights of a run off the list. The caller holds mu.
func (c *Cache) forget(r *run) {
	for _, f := range r.flights {
		if c.flights[f.place] == f {
			delete(c.flights, f.place)
		}
	}
}

// fly does the fetch of a run, and hands its blocks to the cache and to those who wait.
func (c *Cache) fly(r *run) {
	blocks, err := c.bring(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(r)
	for i, f := range r.flights {
		if f.err = err; err == nil {
			if f.block = blocks[i]; f.waiting == 0 {
				f.block.release()
			}
		}
		close(f.done)
	}
	r.cancel()
}

// bring fetches the blocks of a run, each with a reference for those who wait.
func (c *Cache) bring(r *run) ([]*block, error) {
	bytes := int64(0)
	for _, f := range r.flights {
		bytes += int64(f.place.length)
	}
	leave, err := c.config.Enter(r.ctx, bytes, r.hurried)
	if err != nil {
		return nil, err
	}
	defer leave()
	request := Request{Object: r.flights[0].place.object, Offset: r.flights[0].place.offset}
	for _, f := range r.flights {
		if f.place.length == c.config.BlockBytes {
			request.Into = append(request.Into, c.buffers.get())
		} else {
			request.Into = append(request.Into, make([]byte, f.place.length))
		}
	}
	n, err := c.fetch(r.ctx, request)
	c.counts.Fetches.Add(1)
	c.counts.Bytes.Add(uint64(max(n, 0)))
	if err != nil {
		for _, b := range request.Into {
			c.buffers.put(b)
		}
		return nil, err
	}
	if int64(n) < bytes {
		c.ends.Set(request.Object, request.Offset+int64(n))
	}
	blocks := make([]*block, len(r.flights))
	for i, f := range r.flights {
		got := max(0, min(n, len(request.Into[i])))
		n -= got
		blocks[i] = c.land(f.place, request.Into[i], got)
	}
	return blocks, nil
}

// land makes a block of what was fetched, has it kept unless it is empty, and returns it with a reference for those
// who wait.
func (c *Cache) land(p place, data []byte, got int) *block {
	b := &block{data: data[:got]}
	if len(data) == c.buffers.size {
		b.from = c.buffers
	}
	if got < len(data)/4 { // the end of an object, which shall not take more than it is
		b.data, b.from = append(make([]byte, 0, got), data[:got]...), nil
		if len(data) == c.buffers.size {
			c.buffers.put(data)
		}
	}
	b.refers.Store(1)
	if got > 0 {
		b.refers.Store(2)
		c.recent.add(p, b)
	}
	return b
}
