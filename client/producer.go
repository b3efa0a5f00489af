package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// Producer gathers records into batches and sends them. It is safe for concurrent use.
//
//	Produce ─> partition's open batch ─> lane ─> ready queue ─> MaxInFlight senders ─> acks, in order
type Producer struct {
	c   *Client
	cfg ProducerConfig

	// ctx ends when records that are left are to be abandoned.
	ctx    context.Context
	cancel context.CancelFunc

	room     *semaphore.Weighted // bytes
	buffered atomic.Int64
	ready    readyQueue
	senders  sync.WaitGroup
	builders sync.Pool

	topicsMu sync.RWMutex
	topics   map[string]*producerTopic
	// retired topics were deleted; their last batches may still be on their way.
	retired []*producerTopic

	// only is the partition of all records, if an offset is expected.
	only atomic.Pointer[partition]

	identityMu sync.Mutex
	identity   *producerID

	// entered counts calls of Produce that run; empty is closed when there is none and closed is set.
	enterMu sync.Mutex
	entered int
	closed  bool
	empty   chan struct{}
	lost    atomic.Bool
	closing sync.Once
	ended   chan struct{}
}

// NewProducer returns a producer, which must be closed. It contacts no server before the first record.
func (c *Client) NewProducer(cfg ProducerConfig) (*Producer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	p := &Producer{
		c: c, cfg: cfg, ctx: ctx, cancel: cancel,
		room:   semaphore.NewWeighted(int64(cfg.MaxBufferedBytes)),
		topics: make(map[string]*producerTopic),
		empty:  make(chan struct{}),
		ended:  make(chan struct{}),
	}
	p.ready.init()
	for range cfg.MaxInFlight {
		p.senders.Go(p.send)
	}
	return p, nil
}

// Produce takes a record into the next batch of its partition, and copies its bytes. It waits while
// the buffer is full, and at the first record of a topic for the answer how many partitions it has; ctx
// ends this waiting and nothing else.
//
// When Produce returns nil, done (if it is not nil) is called exactly once, in order of offset within a
// partition; it must return soon and must not call Flush, Close or ProduceSync. When Produce returns
// an error the record was not taken, and done is not called: ErrInvalid, ErrTopicNotFound, ErrPartitionNotFound,
// ErrClosed, ErrUnavailable or ctx's.
//
// The first record of a topic that does not exist is, unless there are conditions, sent alone, without a producer id, and Produce waits
// for it: servers that make topics by themselves make one of it. Should the answer be lost, done gets
// ErrUnknownOutcome.
func (p *Producer) Produce(ctx context.Context, rec Record, done func(Ack, error)) error {
	_, err := p.produce(ctx, &rec, done)
	return err
}

// produce returns the partition that took the record; nil if it has its answer already.
func (p *Producer) produce(ctx context.Context, rec *Record, done func(Ack, error)) (*partition, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	if rec.Topic == "" {
		rec.Topic = p.cfg.Topic
	}
	if err := p.check(rec); err != nil {
		return nil, err
	}
	t, err := p.topic(ctx, rec.Topic)
	if errors.Is(err, ErrTopicNotFound) && !p.cfg.conditional() {
		return nil, p.makeTopic(ctx, rec, done)
	}
	if err != nil {
		return nil, err
	}
	part, err := t.choose(rec, p.cfg.Partitioning)
	if errors.Is(err, ErrPartitionNotFound) {
		if err := t.recheck(ctx); err != nil {
			return nil, err
		}
		part, err = t.choose(rec, p.cfg.Partitioning)
	}
	if err != nil {
		return nil, err
	}
	if p.cfg.ExpectedOffset != nil && !p.only.CompareAndSwap(nil, part) && p.only.Load() != part {
		return nil, invalidf("the expected offset is that of %v, a record is for %s/%d", p.only.Load().lane.where, part.topic.name, part.number)
	}
	if err := p.reserve(ctx, rec.size()); err != nil {
		return nil, err
	}
	if err := part.add(rec, done); err != nil {
		p.release(rec.size())
		return nil, err
	}
	return part, nil
}

func (p *Producer) check(rec *Record) error {
	if rec.Topic == "" {
		return invalidf("a record without a topic: set Record.Topic or ProducerConfig.Topic")
	}
	if !rec.Timestamp.IsZero() && rec.Timestamp.UnixMilli() < 0 {
		return invalidf("timestamp %v: must not lie before 1970", rec.Timestamp)
	}
	if n := rec.size(); n > p.cfg.MaxBufferedBytes {
		return invalidf("a record of %d bytes: the producer's buffer holds %d", n, p.cfg.MaxBufferedBytes)
	}
	return nil
}

// firstExpected is the offset that a partition's first record must get.
func (p *Producer) firstExpected() int64 {
	if p.cfg.ExpectedOffset == nil {
		return noOffset
	}
	return *p.cfg.ExpectedOffset
}

// reserve waits for room in the buffer.
func (p *Producer) reserve(ctx context.Context, n int) error {
	if !p.room.TryAcquire(int64(n)) {
		p.hurry()
		ctx, cancel := p.within(ctx)
		defer cancel()
		if err := p.room.Acquire(ctx, int64(n)); err != nil {
			if p.ctx.Err() != nil {
				return errProducerClosed
			}
			return fmt.Errorf("producer: waiting for room in the buffer: %w", err)
		}
	}
	p.buffered.Add(int64(n))
	return nil
}

// within returns a context that ends with ctx, and when the producer is abandoned.
func (p *Producer) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(p.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

func (p *Producer) release(n int) {
	p.buffered.Add(-int64(n))
	p.room.Release(int64(n))
}

var errProducerClosed = fmt.Errorf("producer: %w", ErrClosed)

func (p *Producer) enter() error {
	p.enterMu.Lock()
	defer p.enterMu.Unlock()
	if p.closed || p.c.closed() {
		return errProducerClosed
	}
	p.entered++
	return nil
}

func (p *Producer) leave() {
	p.enterMu.Lock()
	defer p.enterMu.Unlock()
	p.entered--
	if p.closed && p.entered == 0 {
		close(p.empty)
	}
}

// ProduceSync produces records without lingering and waits for all of their acks, which are in the order
// of the records. The error is the first one. When ctx ends the waiting the records stay on their way,
// and the error is ErrUnknownOutcome.
func (p *Producer) ProduceSync(ctx context.Context, recs ...Record) ([]Ack, error) {
	type answer struct {
		index int
		ack   Ack
		err   error
	}
	answers := make(chan answer, len(recs))
	parts := make(map[*partition]struct{})
	acks := make([]Ack, len(recs))
	var first error
	taken := 0
	for i, rec := range recs {
		part, err := p.produce(ctx, &rec, func(ack Ack, err error) { answers <- answer{i, ack, err} })
		if err != nil {
			first = err
			break
		}
		taken++
		if part != nil {
			parts[part] = struct{}{}
		}
	}
	for part := range parts {
		part.hurry()
	}
	for range taken {
		select {
		case a := <-answers:
			acks[a.index] = a.ack
			if first == nil {
				first = a.err
			}
		case <-ctx.Done():
			err := newError(codeOfContext(ctx), "stopped waiting for the acks")
			err.UnknownOutcome, err.cause = true, ctx.Err()
			return acks, err
		}
	}
	return acks, first
}

// Flush sends what is there without lingering and waits until every record that was taken before has
// its ack or its error. It returns only ctx's error: failures go to callbacks and OnBatch.
func (p *Producer) Flush(ctx context.Context) error {
	for _, done := range p.hurry() {
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// hurry makes open batches ready, and returns what will be closed when the batches that are there now
// are finished.
func (p *Producer) hurry() []<-chan struct{} {
	p.topicsMu.RLock()
	topics := slices.AppendSeq(slices.Clone(p.retired), maps.Values(p.topics))
	p.topicsMu.RUnlock()
	var all []<-chan struct{}
	for _, t := range topics {
		for _, part := range t.all() {
			all = append(all, part.hurry()...)
		}
	}
	return all
}

// Close flushes, then ends the producer. If ctx ends first, what is left fails: with ErrClosed if it was
// never sent, else with ErrUnknownOutcome; Close returns ctx's error then. Later calls wait for the first.
func (p *Producer) Close(ctx context.Context) error {
	err := errProducerClosed
	p.closing.Do(func() { err = p.shut(ctx) })
	if errors.Is(err, ErrClosed) {
		<-p.ended
		return nil
	}
	return err
}

func (p *Producer) shut(ctx context.Context) error {
	defer close(p.ended)
	p.enterMu.Lock()
	p.closed = true
	if p.entered == 0 {
		close(p.empty)
	}
	p.enterMu.Unlock()

	stop := context.AfterFunc(ctx, p.cancel)
	defer stop()
	// From here on either everything gets its answer, or ctx ends and all that is left fails soon.
	<-p.empty
	abandon := context.AfterFunc(p.ctx, func() { p.hurry() })
	for _, done := range p.hurry() {
		<-done
	}
	abandon()
	p.cancel()
	p.ready.close()
	p.senders.Wait()
	if p.lost.Load() {
		return fmt.Errorf("producer: closed with records left: %w", ctx.Err())
	}
	return nil
}

// BufferedBytes is how much was taken and has no ack yet, at most MaxBufferedBytes.
func (p *Producer) BufferedBytes() int { return int(p.buffered.Load()) }
