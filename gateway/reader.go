package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// storedLimits bound the inflating of batches that were validated when they came.
var storedLimits = batch.Limits{MaxBatchBytes: 64 << 20, MaxInflatedBytes: 64 << 20, MaxRecordBytes: 64 << 20, MaxRecords: 1 << 24}

// readsAtOnce is how many ranges one message is gathered from at a time.
const readsAtOnce = 8

// reader finds record batches: places from the index, bytes from memory or the bucket.
type reader struct {
	g     *Gateway
	index metadata.Index
	fresh *freshSegments
	// blocks has the bytes that are not fresh, room is for those of messages.
	blocks *blocks
	room   *messageRoom
	// goingThrough is how many readers go through old data, a partition each.
	goingThrough atomic.Int64
}

func newReader(g *Gateway) *reader {
	return &reader{g: g, index: newIndexCache(metadata.TableIndex{Table: g.table}, g.config.IndexCacheBytes), fresh: newFreshSegments(g.config.FreshBytes),
		blocks: newBlocks(g), room: newMessageRoom(g.config.ReadBytes)}
}

// view is what readers may see of a partition now. It may be milliseconds late where
// another gateway sequences it.
func (g *Gateway) view(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	return g.viewOf(ctx, g.partitions.get(id))
}

func (g *Gateway) viewOf(ctx context.Context, p *partition) (*metadata.View, error) {
	if p.owned.Load() {
		if v := p.view.Load(); v != nil {
			return v, nil
		}
	}
	return g.mirrors.view(ctx, p)
}

// viewNow is what readers may see of a partition as of a moment after the call: no append
// that was acked before it, by any gateway, is missing. Whoever sequences the partition is
// asked; where nobody is found who does, or does not answer, the table is.
func (g *Gateway) viewNow(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	v, err := g.askSequencer(ctx, id)
	if err != nil {
		if ctx.Err() != nil || lasting(err) && !errors.Is(err, errUnreachable) { // garbage of a peer is no damage of the log
			return nil, err
		}
		if v, err = g.latest.read(ctx, id); err != nil {
			return nil, err
		}
	}
	p := g.partitions.get(id)
	p.publish(v)
	return p.view.Load(), nil
}

// mostReferrals is how often a reader lets itself be sent on. What gateways remember of where
// partitions are may be old, and lead in a circle.
const mostReferrals = 3

// askSequencer asks for a view where the partition is said to be sequenced.
func (g *Gateway) askSequencer(ctx context.Context, id metadata.PartitionID) (v *metadata.View, err error) {
	for range mostReferrals {
		to := g.router.route(id)
		if to == g.ID() {
			v, err = g.readHere(ctx, id)
		} else {
			v, err = g.peers.read(ctx, to, id)
		}
		var held *elsewhere
		if !errors.As(err, &held) {
			return v, err
		}
		g.router.learn(id, held.holder)
	}
	return nil, err
}

// filter says which records a reader wants.
type filter struct {
	from  int64 // offset
	until int64 // exclusive
	times *timeRange
}

type timeRange struct{ start, end int64 }

// wanted is a byte range of a segment with whole batches in it.
type wanted struct {
	chunk  metadata.Chunk
	length int64
	asked  int64 // of them by a reader, where ranges are joined to be read ahead
}

// read gathers whole batches from offset f.from on, at most maxBytes (but at least
// one batch), in the memory of a message; nil: in memory of their own. next is the offset that the
// reader has got to: past batches that the filter left out, too. at is the segment in which the last of what was read lies; empty
// when nothing was.
func (r *reader) read(ctx context.Context, v *metadata.View, f filter, maxBytes int, m *message) (data []byte, next int64, at segmentName, err error) {
	until := min(f.until, v.Next)
	ctx = bill.ForTopic(ctx, v.Partition.Topic)
	ranges, next, err := r.plan(ctx, v, f, until, maxBytes)
	next = max(f.from, min(next, until))
	if err != nil || len(ranges) == 0 {
		return nil, next, at, err
	}
	last := &ranges[len(ranges)-1].chunk
	at = segmentName{last.Gateway, last.Number}
	total := int64(0)
	for _, w := range ranges {
		total += w.length
	}
	buffer, err := m.take(ctx, total)
	if err != nil {
		return nil, 0, at, err
	}
	pieces, faults := r.fetch(ctx, ranges, buffer, next >= v.Next) // who has come to the end waits for nobody
	into := buffer[:0]
	for i := range ranges {
		reached, err := ranges[i].chunk.First, faults[i]
		if errors.Is(err, errMissing) {
			continue
		}
		if err == nil {
			into, reached, err = r.check(ctx, ranges[i], pieces[i], f, into)
		}
		switch {
		case err != nil && len(into) == 0:
			return nil, 0, at, err
		case err != nil:
			return into, reached, at, nil // what is good goes out; the next read begins with the fault
		}
	}
	return into, next, at, nil
}

// plan picks the chunks to read, from the index.
func (r *reader) plan(ctx context.Context, v *metadata.View, f filter, until int64, maxBytes int) (ranges []wanted, next int64, err error) {
	next = f.from
	budget := int64(maxBytes)
	for next < until {
		entries, err := v.Entries(ctx, r.index, next)
		if err != nil {
			return nil, 0, err
		}
		for i := range entries {
			e := &entries[i]
			if e.First >= until {
				return ranges, next, nil
			}
			if e.Length == 0 || f.times != nil && !e.Overlaps(f.times.start, f.times.end) {
				next = max(next, e.End)
				continue
			}
			for _, c := range e.Chunks() {
				if c.End <= next || c.First >= until {
					continue
				}
				if c.Length > budget && len(ranges) > 0 || len(ranges) >= 4*readsAtOnce {
					return ranges, next, nil
				}
				budget -= c.Length
				next = c.End
				if f.times != nil && c.MaxTimestamp < f.times.start {
					continue
				}
				ranges = join(ranges, c)
			}
		}
	}
	return ranges, next, nil
}

// join adds a chunk, to the range before it if it lies right behind that.
func join(ranges []wanted, c metadata.Chunk) []wanted {
	if n := len(ranges); n > 0 {
		last := &ranges[n-1]
		if last.chunk.Gateway == c.Gateway && last.chunk.Number == c.Number && last.chunk.Sparse == c.Sparse && last.chunk.Position+last.length == c.Position && last.chunk.End == c.First {
			last.length += c.Length
			last.chunk.End = c.End
			return ranges
		}
	}
	return append(ranges, wanted{chunk: c, length: c.Length})
}

// fetch reads the ranges one behind the other into buffer, each with its own error.
func (r *reader) fetch(ctx context.Context, ranges []wanted, buffer []byte, hurry bool) ([][]byte, []error) {
	pieces, faults := make([][]byte, len(ranges)), make([]error, len(ranges))
	for i, w := range ranges {
		pieces[i], buffer = buffer[:w.length:w.length], buffer[w.length:]
	}
	if len(ranges) == 1 {
		faults[0] = r.bytes(ctx, ranges[0], pieces[0], hurry)
		return pieces, faults
	}
	var group errgroup.Group
	group.SetLimit(readsAtOnce)
	for i := range ranges {
		group.Go(func() error {
			faults[i] = r.bytes(ctx, ranges[i], pieces[i], hurry)
			return nil
		})
	}
	group.Wait() // faults has the errors
	return pieces, faults
}

// errMissing is what [seeded.MissingIsEmpty] is about.
var errMissing = errors.New("gateway: object is missing")

// missingObject says that an object which the index names is not there. A newer index may name others for its offsets.
type missingObject struct {
	key         string
	first, last int64 // offsets that lie in it
}

func (m *missingObject) Error() string {
	return fmt.Sprintf("%v: segment %s is gone, but offsets %d to %d lie in it", segments.ErrCorrupt, m.key, m.first, m.last)
}

func (m *missingObject) Unwrap() error { return segments.ErrCorrupt }

// bytes reads a range: from memory while the segment is fresh, else by the blocks.
func (r *reader) bytes(ctx context.Context, w wanted, into []byte, hurry bool) error {
	if r.fresh.read(segmentName{w.chunk.Gateway, w.chunk.Number}, into, w.chunk.Position) {
		return nil
	}
	key := r.g.objectKey(w.chunk)
	n, err := r.blocks.read(ctx, key, into, w.chunk.Position, hurry)
	if err == nil && n < len(into) && r.blocks.cache != nil { // make sure that it is so
		n, err = r.blocks.again(ctx, key, into, w.chunk.Position)
	}
	switch {
	case errors.Is(err, segments.ErrNotFound) && seeded.Has(seeded.MissingIsEmpty):
		return errMissing
	case errors.Is(err, segments.ErrNotFound):
		return &missingObject{key, w.chunk.First, w.chunk.End - 1}
	case err != nil:
		return fmt.Errorf("read segment %s: %w", key, err)
	case n < len(into):
		return fmt.Errorf("%w: segment %s ends at %d, but offsets %d to %d lie at %d to %d", segments.ErrCorrupt, key,
			w.chunk.Position+int64(n), w.chunk.First, w.chunk.End-1, w.chunk.Position, w.chunk.Position+w.length)
	}
	return nil
}

func (g *Gateway) objectKey(c metadata.Chunk) string {
	return segments.ObjectKey(segments.ClusterID(g.cluster.ID), segments.GatewayID(c.Gateway), c.Number)
}

// check is stamp, and once more with what the bucket has if the bytes are damaged that came by memory or by another gateway.
func (r *reader) check(ctx context.Context, w wanted, data []byte, f filter, into []byte) (_ []byte, reached int64, _ error) {
	stamped, reached, err := r.stamp(w, data, f, into)
	if err == nil || r.blocks.cache == nil {
		return stamped, reached, err
	}
	key := r.g.objectKey(w.chunk)
	if n, failed := r.blocks.again(ctx, key, data, w.chunk.Position); failed != nil || n < len(data) {
		return into, w.chunk.First, err // what was good lay where this may have been written
	}
	again, further, failed := r.stamp(w, data, f, into)
	if failed == nil {
		r.g.log.Warn("bytes of a segment were damaged on their way, not in the bucket", "segment", key, "error", err)
		r.g.meters.blocksDamaged.Add(1)
	}
	return again, further, failed
}

// stamp checks the batches of a range, gives them their offsets and appends those
// that the filter wants to into, which may be the front of data itself. It returns the
// offset that it came to: with an error, that of the damage.
func (r *reader) stamp(w wanted, data []byte, f filter, into []byte) (_ []byte, reached int64, _ error) {
	offset, position, before := w.chunk.First, 0, len(into)
	for position < len(data) {
		h, err := batch.Check(data[position:])
		if err != nil {
			return into, offset, r.damage(w, position, offset, err)
		}
		if w.chunk.Sparse { // nothing but the batch itself tells where it is
			if err := h.CheckPlace(); err != nil {
				return into, offset, r.damage(w, position, offset, err)
			}
			if h.BaseOffset < offset || h.BaseOffset+int64(h.LastOffsetDelta) >= w.chunk.End {
				return into, offset, r.damage(w, position, offset, fmt.Errorf("its base offset is %d, and the index says %d to %d (end, exclusive)", h.BaseOffset, offset, w.chunk.End))
			}
			offset = h.BaseOffset
		}
		end := position + h.Size()
		last := offset + int64(h.LastOffsetDelta) + 1
		if last > f.from && offset < f.until && (f.times == nil || h.MaxTimestamp >= f.times.start) {
			at := len(into)
			if size := end - position; cap(into) >= at+size && &into[:at+1][at] == &data[position] {
				into = into[:at+size] // it lies where it should
			} else {
				into = append(into, data[position:end]...)
			}
			batch.SetBaseOffset(into[at:], offset, 0)
		}
		offset, position = last, end
	}
	if w.chunk.Sparse {
		offset = max(offset, w.chunk.End)
	}
	if offset != w.chunk.End {
		// Which of the batches is not the one that was meant, nobody knows.
		return into[:before], w.chunk.First, r.damage(w, position, offset, fmt.Errorf("the index says that offset %d comes next", w.chunk.End))
	}
	return into, offset, nil
}

func (r *reader) damage(w wanted, position int, offset int64, err error) error {
	return fmt.Errorf("%w: segment %s, position %d (offset %d): %w", segments.ErrCorrupt, r.g.objectKey(w.chunk), w.chunk.Position+int64(position), offset, err)
}

// scan is the [metadata.ScanFunc] over the bucket: one ranged read.
func (r *reader) scan(ctx context.Context, c metadata.Chunk, from, t int64) (metadata.Found, int64, bool, error) {
	w := wanted{chunk: c, length: c.Length}
	data := make([]byte, w.length)
	err := r.bytes(ctx, w, data, true)
	if err != nil {
		return metadata.Found{}, 0, false, err
	}
	if data, _, err = r.check(ctx, w, data, filter{from: from, until: c.End}, data[:0]); err != nil {
		return metadata.Found{}, 0, false, err
	}
	found, ok, largest := metadata.Found{}, false, metadata.NoTimestamp
	for b, err := range batch.Split(data) {
		if err != nil {
			return found, 0, false, r.damage(w, 0, from, err)
		}
		for record, err := range batch.Records(b, storedLimits) {
			if err != nil {
				return found, 0, false, r.damage(w, 0, from, err)
			}
			if record.Offset < from {
				continue
			}
			largest = max(largest, record.Timestamp)
			switch {
			case ok:
			case record.Timestamp >= t:
				found.Offset, found.Timestamp, ok = record.Offset, record.Timestamp, true
				if t > 0 { // nobody asks for the largest
					return found, metadata.NoTimestamp, true, nil
				}
			default:
				found.PreviousOffset, found.Previous, found.PreviousKnown = record.Offset, record.Timestamp, true
			}
		}
	}
	return found, largest, ok, nil
}
