package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/sync/semaphore"

	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

const (
	// uploadsAtOnce bounds the segments that are uploaded or wait for their verdicts: while there are
	// so many, the open one grows. One that has waited for slotTime does not count any more: whoever
	// does not answer holds up nothing but what needs it.
	uploadsAtOnce = 16
	slotTime      = 250 * time.Millisecond
	// stretch is how long a partial segment waits, at most, for producers that are known
	// to send more, and busy from how many bytes in flight on they are taken to.
	stretch = 100 * time.Millisecond
	busy    = 2 << 20
	// forbearance is how long it waits, at most, for what has arrived already and would fill it: then
	// processors are what is short, and smaller segments would only cost more of them.
	forbearance = time.Second
	// spanBatches seals a segment when one partition has so many batches in it: the
	// verdicts on them must fit a row of the table, and the answers that are kept a lease row.
	spanBatches = 1000
	// stalled is for how long the store, the table or a partition's sequencer may fail before appends
	// are refused, hurried for how long another gateway's may when half of the room is taken.
	stalled = 5 * time.Second
	hurried = time.Second
)

// intake gathers appends in the open segment, seals it by size, pace or demand, and
// uploads what is sealed.
type intake struct {
	g       *Gateway
	t       *tenure
	room    *semaphore.Weighted // bytes of appends that are not settled
	uploads *semaphore.Weighted // bytes of segments being uploaded
	slots   chan struct{}

	outstanding atomic.Int64 // bytes that producers wait for
	arrived     atomic.Int64 // bytes of requests that were read and are not gathered yet: nothing but a processor is missing
	awaited     atomic.Bool  // the open segment waits for them
	buffered    atomic.Int64 // records to be acked as buffered that are not settled
	kept        atomic.Bool  // a buffer file stays for the next start
	// keptFrom is the lowest number whose buffer file stays, 0 without one: it is not settled before the next start has had its
	// batches judged.
	keptFrom uint64

	mu        sync.Mutex
	open      *openSegment
	number    uint64 // of the last segment that was opened
	chains    map[segments.SpanID]*chain
	sealed    []*openSegment
	unsettled map[uint64]struct{} // numbers
	peak      int64               // of outstanding since the seal before the last
	recent    int64               // of outstanding since the last seal
	lastSeal  time.Time
	closing   bool
	because   error         // what appends are told then
	idle      chan struct{} // closed when closing and nothing is unsettled
	wake      chan struct{}
}

// openSegment is a segment on its way: gathered, sealed, uploaded, committed.
type openSegment struct {
	number  uint64
	builder *segments.Builder
	spans   map[segments.SpanID]*openSpan
	buffer  *segments.BufferFile // of batches acked as buffered, if there are any
	// bodies is the memory that its batches lie in, as far as that is used again.
	bodies  []*body
	bytes   int64
	crowded bool // a span has as many batches as it may have
	damaged bool // a span could not be judged: its buffer file must stay
	spilled bool // its buffer file has batches
	// unspilled is why the disk takes nothing of this segment: nil while it does.
	unspilled error
}

type openSpan struct {
	previous uint64
	appends  []*appending // in the order of the span's batches
}

func newIntake(t *tenure) *intake {
	g := t.g
	return &intake{
		g: g, t: t, room: semaphore.NewWeighted(g.config.BufferBytes), uploads: semaphore.NewWeighted(g.config.UploadBytes),
		slots: make(chan struct{}, uploadsAtOnce), chains: make(map[segments.SpanID]*chain),
		unsettled: make(map[uint64]struct{}), idle: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

// append takes the batches of a call, of one kind of acknowledgement, and returns when each is committed (its
// verdict), or on disk for AckBuffered, or has an error. When ctx ends first the outcome of the others is unknown.
func (in *intake) append(ctx context.Context, c *call) {
	var size int64
	for i := range c.batches {
		size += c.batches[i].size
	}
	if c.refused = in.admit(ctx, c, size); c.refused != nil {
		in.leave(&c.arrived, c.arrived) // nobody should wait for it
		return
	}
	in.gatherAll(c)
	if c.batches[0].info.Ack == segments.AckBuffered {
		in.sync(ctx, c.batches)
		return
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		c.ended = unknownOutcome("the caller's time ended before the commit", context.Cause(ctx))
	}
}

// sync waits until batches are on disk, for the file of each of their segments once.
func (in *intake) sync(ctx context.Context, batches []appending) {
	for len(batches) > 0 {
		segment, n, upTo := batches[0].segment, 0, int64(0)
		for ; n < len(batches) && batches[n].segment == segment; n++ {
			upTo = max(upTo, batches[n].upTo)
		}
		if segment != nil { // else they were refused
			if err := segment.buffer.Sync(ctx, upTo); err != nil {
				for i := range batches[:n] {
					batches[i].unsynced = unknownOutcome("the disk did not confirm the write", err)
				}
				if errors.Is(err, segments.ErrBufferFailed) {
					in.seal(segment) // its file takes no more; what it holds goes on from memory
				}
			}
		}
		batches = batches[n:]
	}
}

// gatheredAtOnce is how many batches of a call are gathered before others get their turn.
const gatheredAtOnce = 64

// gatherAll gathers the batches of a call, those apart that are refused.
func (in *intake) gatherAll(c *call) {
	for rest := c.batches; len(rest) > 0; {
		n := min(len(rest), gatheredAtOnce)
		in.gatherSome(c, rest[:n])
		rest = rest[n:]
	}
	in.leave(&c.arrived, c.arrived)
}

// arrive notes that so many bytes will be gathered as soon as there is a processor for it, or
// leave the intake otherwise.
func (in *intake) arrive(bytes int64) int64 {
	in.arrived.Add(bytes)
	return bytes
}

// leave takes so many bytes of what is left off what has arrived.
func (in *intake) leave(left *int64, bytes int64) {
	if bytes == 0 {
		return
	}
	*left -= bytes
	in.arrived.Add(-bytes)
	if *left == 0 && in.awaited.Load() {
		in.poke()
	}
}

func (in *intake) gatherSome(c *call, batches []appending) {
	in.mu.Lock()
	defer in.mu.Unlock()
	now := time.Now()
	for i := range batches {
		a := &batches[i]
		in.leave(&c.arrived, min(a.size, c.arrived))
		if err := in.gather(a, now); err != nil {
			a.data, a.segment = nil, nil
			in.release(a.size)
			a.settle(appended{err: err})
		}
	}
}

// admit waits for room, and refuses when there is none or nothing can be written.
func (in *intake) admit(ctx context.Context, c *call, size int64) error {
	if err := in.healthy(); err != nil {
		return err
	}
	if ctx.Err() != nil { // whoever sent it has given up, maybe while this gateway was stopped
		return ctx.Err()
	}
	if size > in.g.config.BufferBytes {
		return refuseTooLarge(size, in.g.config.BufferBytes)
	}
	if !in.room.TryAcquire(size) {
		in.leave(&c.arrived, c.arrived) // it may have to wait for the open segment
		limit, cancel := context.WithTimeout(ctx, in.g.config.AdmitWait)
		defer cancel()
		if in.room.Acquire(limit, size) != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return refuseFull(in.g.config.BufferBytes)
		}
	}
	in.outstanding.Add(size)
	return nil
}

func (in *intake) release(size int64) {
	in.outstanding.Add(-size)
	in.room.Release(size)
}

// healthy refuses appends while the store or the table has not taken anything for a while.
func (in *intake) healthy() error {
	if lasting := in.g.failing.lasting(); lasting > stalled {
		return fmt.Errorf("%w: uploads have been failing for %s: %s", segments.ErrUnavailable, lasting.Round(time.Second), in.g.failing.reason())
	}
	if lasting := in.t.sequencer.pending.lasting(); lasting > stalled {
		return fmt.Errorf("%w: it has not taken a commit for %s", metadata.ErrUnavailable, lasting.Round(time.Second))
	}
	return nil
}

// gather puts the batch into the open segment, and into its buffer file if it is to
// be acked as buffered. The caller holds mu.
func (in *intake) gather(a *appending, now time.Time) error {
	if in.closing {
		return in.refused()
	}
	if err := in.g.router.brokenOff(partitionOfSpan(a.span)); err != nil {
		return err
	}
	if err := in.silentLocked(a.span, now); err != nil {
		return err
	}
	if in.open == nil {
		if !seeded.Has(seeded.ReuseNumber) || in.number%5 != 1 {
			in.number++
		}
		in.open = &openSegment{number: in.number, spans: make(map[segments.SpanID]*openSpan),
			builder: segments.NewBuilder(segments.ClusterID(in.g.cluster.ID), segments.GatewayID(in.t.id), in.number)}
		in.open.builder.Checked(batch.CRCStart) // what is gathered was validated
		in.unsettled[in.number] = struct{}{}
	}
	segment := in.open
	if a.info.Ack == segments.AckBuffered {
		var err error
		if a.upTo, err = in.spill(segment, a.span, a.data, a.info); err != nil {
			return err
		}
	}
	if a.memory != nil { // before the segment has it, and as long as the segment lives even if that does not take it
		segment.bodies = append(segment.bodies, a.memory.retain())
	}
	if err := segment.builder.Add(a.span, a.data, a.info); err != nil {
		if a.upTo != 0 {
			return unknownOutcome("the batch is on disk but not in memory", err)
		}
		return err
	}
	a.data, a.memory, a.segment = nil, nil, segment
	s := segment.spans[a.span]
	if s == nil {
		s = &openSpan{}
		segment.spans[a.span] = s
	}
	s.appends = append(s.appends, a)
	if a.info.Ack == segments.AckBuffered {
		in.buffered.Add(int64(a.info.Records))
	}
	segment.bytes += a.size
	segment.crowded = segment.crowded || len(s.appends) >= spanBatches
	in.recent = max(in.recent, in.outstanding.Load())
	first := segment.builder.Batches() == 1
	if in.full(segment) {
		in.sealLocked()
		in.poke()
	} else if first || in.complete(segment) {
		in.poke()
	}
	return nil
}

// silentLocked refuses appends to a partition of which nobody gives a verdict for a while: they would
// wait in line, and take the room of those to other partitions.
func (in *intake) silentLocked(span segments.SpanID, now time.Time) error {
	waited := in.chains[span].waiting(now)
	if waited <= hurried {
		return nil
	}
	id, limit := partitionOfSpan(span), stalled
	to := in.g.router.route(id)
	if to != in.g.ID() && in.outstanding.Load() > in.g.config.BufferBytes/2 {
		limit = hurried
	}
	if waited <= max(limit, 4*in.g.config.FlushInterval) { // its cycles may be that far apart
		return nil
	}
	return refuse(connect.CodeUnavailable, reasonBusy, "the gateway that sequences partition %d, %s, has not answered this one for %s: ask another gateway, or again in a moment",
		id.Number, to, waited.Round(time.Millisecond)).withRetriable()
}

// full says that there is no point in adding to the segment.
func (in *intake) full(segment *openSegment) bool {
	limit := in.g.config.SegmentBytes
	return segment.bytes >= limit || segment.builder.Batches() >= in.g.config.SegmentBatches || segment.crowded ||
		segment.bytes >= limit/16*15 && in.complete(segment)
}

// complete says that the segment has about all that producers had in flight lately:
// they wait for it, and more will hardly come before it is done.
func (in *intake) complete(segment *openSegment) bool {
	return segment.bytes >= max(in.peak, in.recent)/10*9
}

// spill writes the batch into the segment's buffer file.
func (in *intake) spill(segment *openSegment, span segments.SpanID, data []byte, info segments.BatchInfo) (int64, error) {
	if in.g.buffers == nil {
		return 0, refuseBuffered("this gateway has no disk for its buffer")
	}
	if room, err := in.g.buffers.Room(); err == nil && room <= int64(len(data)) {
		return 0, fmt.Errorf("%w: the buffer's disk is down to its reserve", segments.ErrDiskFull)
	}
	if segment.unspilled != nil {
		return 0, segment.unspilled
	}
	if segment.buffer == nil {
		file, err := in.g.buffers.Create(segments.GatewayID(in.t.id), segment.number)
		if err != nil {
			in.unspill(segment, err)
			return 0, err
		}
		segment.buffer = file
	}
	upTo, err := segment.buffer.Append(span, info, data)
	switch {
	case errors.Is(err, segments.ErrBufferFailed):
		in.unspill(segment, err)
	case err == nil:
		segment.spilled = true
	}
	return upTo, err
}

// unspill notes that the disk takes nothing more of a segment. The next one has another file: it comes at once, but for a
// segment with committed batches alone, which would become a PUT for each append that a broken disk refuses.
func (in *intake) unspill(segment *openSegment, err error) {
	if segment.bytes > 0 && !segment.spilled {
		segment.unspilled = err
		return
	}
	in.sealLocked()
	in.poke()
}

// seal closes the segment if it is still open.
func (in *intake) seal(segment *openSegment) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.open == segment {
		in.sealLocked()
		in.poke()
	}
}

func (in *intake) sealLocked() {
	segment := in.open
	in.open = nil
	if segment == nil {
		return
	}
	if segment.bytes == 0 { // nothing got into it
		in.settledLocked(segment)
		if segment.buffer != nil {
			if err := segment.buffer.Remove(); err != nil {
				in.g.log.Warn("empty buffer file not removed", "segment", segment.number, "error", err)
			}
		}
		return
	}
	for id, span := range segment.spans {
		c := in.chains[id]
		if c == nil {
			c = &chain{}
			in.chains[id] = c
		}
		span.previous = c.join(segment.number)
	}
	in.sealed = append(in.sealed, segment)
	in.lastSeal = time.Now()
	in.peak, in.recent = in.recent, in.outstanding.Load()
}

func (in *intake) poke() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// run seals by pace and starts uploads, until ctx ends.
func (in *intake) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var uploads sync.WaitGroup
	defer uploads.Wait()
	for {
		segment, wait := in.next(time.Now())
		if segment != nil {
			if in.start(ctx, &uploads, segment) != nil {
				return
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			in.abandon(context.Cause(ctx))
			return
		case <-in.wake:
		case <-timer.C:
		}
	}
}

// next returns a sealed segment, or for how long there is nothing to seal.
func (in *intake) next(now time.Time) (*openSegment, time.Duration) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.open != nil && len(in.sealed) == 0 {
		if wait := in.lastSeal.Add(in.pace()).Sub(now); wait > 0 && !in.closing {
			return nil, wait
		}
		in.sealLocked()
	}
	if len(in.sealed) == 0 {
		return nil, time.Hour
	}
	segment := in.sealed[0]
	in.sealed = slices.Delete(in.sealed, 0, 1)
	return segment, 0
}

// pace is how long after the last one the open segment is sealed, however small it is.
func (in *intake) pace() time.Duration {
	pace, bytes := in.g.config.FlushInterval, in.open.bytes
	in.awaited.Store(true) // before it is looked at, so that none leaves unnoticed
	arrived := in.arrived.Load()
	switch {
	case bytes+arrived >= in.g.config.SegmentBytes/16*15:
		return max(pace, forbearance)
	case arrived >= bytes: // of one large request, say: a moment
		return max(pace, stretch)
	}
	in.awaited.Store(false)
	if max(in.peak, in.recent) >= busy && !in.complete(in.open) {
		return max(pace, stretch)
	}
	return pace
}

// refuse takes no more appends, and says why. What was taken goes on.
func (in *intake) refuse(why error) {
	in.mu.Lock()
	in.because = why
	in.mu.Unlock()
	in.stop()
}

func (in *intake) refused() error {
	if in.because != nil {
		return in.because
	}
	return errDraining
}

// stop takes no more appends, and seals what is open.
func (in *intake) stop() {
	in.mu.Lock()
	in.closing = true
	in.sealLocked()
	if len(in.unsettled) == 0 {
		select {
		case <-in.idle:
		default:
			close(in.idle)
		}
	}
	in.mu.Unlock()
	in.poke()
}

// drain refuses appends, and waits until all that were taken are settled.
func (in *intake) drain(ctx context.Context) error {
	in.stop()
	select {
	case <-in.idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// abandon answers everything that was not uploaded when the gateway ends.
func (in *intake) abandon(err error) {
	in.mu.Lock()
	in.closing = true
	in.sealLocked()
	segments := in.sealed
	in.sealed = nil
	in.mu.Unlock()
	for _, segment := range segments {
		in.answer(segment, err)
	}
}
