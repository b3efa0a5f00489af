package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"golang.org/x/sync/errgroup"
)

// Order is the order in which records of different partitions come. Records of one partition always
// come in offset order.
type Order uint8

const (
	// AsTheyCome gives each record as soon as it is there.
	AsTheyCome Order = iota
	// ByTimestamp merges the partitions by timestamp, ties by partition: of the next record of each
	// partition the oldest comes first. It needs an end, since a partition that is silent holds up the rest.
	ByTimestamp
)

// ConsumerConfig says what to read.
type ConsumerConfig struct {
	Topic string
	// Partitions to read; all when empty. A consumer of all partitions that follows for ever takes up
	// new ones too, from their beginning.
	Partitions []int32
	// Start is Earliest when unset.
	Start Place
	// Starts replaces Start in some partitions.
	Starts map[int32]Place
	// End is exclusive. Unset: follow for ever.
	End Place
	// Linearizable: places that depend on the end are as of a moment after reading began, so that no record that was
	// acknowledged before is missing, through whichever gateway. It costs a read of the table.
	Linearizable bool
	// Between, if set, leaves out all records outside.
	Between *TimeRange
	// Order is AsTheyCome by default.
	Order Order
	// MaxBytes is the size of message wanted, in bytes of record batches; a batch that is larger comes
	// nevertheless. Default 1 MiB. Up to three messages a partition are held in memory when merging,
	// so that it is made smaller for many partitions (64 MiB in all, but at least 64 KiB each).
	MaxBytes int
}

// Validate lists every fault at once.
func (cfg ConsumerConfig) Validate() error {
	var faults []error
	if cfg.Topic == "" {
		faults = append(faults, errors.New("topic: must be given"))
	}
	if cfg.Order == ByTimestamp && cfg.End.IsZero() {
		faults = append(faults, errors.New("order by timestamp: needs an end"))
	}
	if cfg.Order > ByTimestamp {
		faults = append(faults, fmt.Errorf("order %d: unknown", cfg.Order))
	}
	if cfg.MaxBytes < 0 {
		faults = append(faults, errors.New("max bytes: must not be negative"))
	}
	if b := cfg.Between; b != nil && b.End.Before(b.Start) {
		faults = append(faults, fmt.Errorf("between %v and %v: ends before it begins", b.Start, b.End))
	}
	places := []Place{cfg.Start, cfg.End}
	for _, p := range cfg.Starts {
		places = append(places, p)
	}
	for _, p := range places {
		if err := p.validate(); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("consumer configuration: %w", errors.Join(faults...))
	}
	return nil
}

// Consumer reads a topic. It holds no connection between iterations.
type Consumer struct {
	c   *Client
	cfg ConsumerConfig
	// growthInterval is how often new partitions are looked for.
	growthInterval time.Duration
}

// NewConsumer returns a consumer. It contacts no server before the first iteration.
func (c *Client) NewConsumer(cfg ConsumerConfig) (*Consumer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	setDefault(&cfg.MaxBytes, 1<<20)
	return &Consumer{c: c, cfg: cfg, growthInterval: 30 * time.Second}, nil
}

// Records yields the records. It ends when every partition has reached its end, when the loop is left,
// or after one error: ctx's, ErrTopicNotFound, ErrOutOfRange, ErrDataLoss. Lost connections are made
// again, without an error, for as long as ctx lasts, and reading goes on where it was. A record's bytes
// stay valid and are the caller's, but share memory with the rest of their batch.
//
// Whichever gateways it reads from, the high watermark never falls.
//
// Each call of Records begins at Start anew.
func (k *Consumer) Records(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		start, err := k.resolve(ctx)
		if err != nil {
			yield(Record{}, err)
			return
		}
		if k.cfg.Order == ByTimestamp {
			k.merge(ctx, start, yield)
			return
		}
		d := k.decoder(start)
		take := func(r Record) bool { return yield(r, nil) }
		for m, err := range k.messages(ctx, start) {
			if err != nil {
				yield(Record{}, err)
				return
			}
			more, damage := d.records(m, take)
			if damage != nil {
				yield(Record{}, damage)
			}
			if !more {
				return
			}
		}
	}
}

func (k *Consumer) decoder(start []cursor) *decoder {
	d := &decoder{topic: k.cfg.Topic, between: k.cfg.Between, ends: make(map[int32]int64)}
	for _, c := range start {
		if c.end != withoutEnd {
			d.ends[c.partition] = c.end
		}
	}
	return d
}

// Batches is a message as it came: whole record batches of one partition, back to back, not decoded. The
// first may begin below StartOffset, and Between is applied to batches only.
type Batches struct {
	Partition int32
	// Data is the caller's.
	Data []byte
	// StartOffset is where the reader was, NextOffset where Data brings it.
	StartOffset, NextOffset int64
	// LogStart is the first readable offset, HighWatermark the one after the last committed record.
	LogStart, HighWatermark int64
	// End: the partition has reached its end.
	End bool
}

// Batches yields messages as they come, whatever Order says. It is Records without the decoding.
func (k *Consumer) Batches(ctx context.Context) iter.Seq2[Batches, error] {
	return func(yield func(Batches, error) bool) {
		start, err := k.resolve(ctx)
		if err != nil {
			yield(Batches{}, err)
			return
		}
		k.messages(ctx, start)(yield)
	}
}

// messages yields messages as they come, from one stream that is read ahead by one message.
func (k *Consumer) messages(ctx context.Context, start []cursor) iter.Seq2[Batches, error] {
	return func(yield func(Batches, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		f := k.feed(ctx, start)
		defer f.wait()
		defer cancel()
		for m := range f.messages {
			if !yield(m, nil) {
				return
			}
		}
		if f.err != nil {
			yield(Batches{}, f.err)
		}
	}
}

// feed is a goroutine that reads, and its messages.
type feed struct {
	messages chan Batches
	// err is valid once messages is closed.
	err error
}

// feed reads until all partitions are done, or ctx is.
func (k *Consumer) feed(ctx context.Context, start []cursor) *feed {
	f := &feed{messages: make(chan Batches, 1)}
	go func() {
		defer close(f.messages)
		f.err = k.follow(ctx, start, f.emit)
	}()
	return f
}

func (f *feed) emit(ctx context.Context, m Batches) error {
	select {
	case f.messages <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wait returns when the goroutine has ended, which its context makes it do.
func (f *feed) wait() {
	for range f.messages {
	}
}

// follow reads the partitions given, and those that are added to the topic while it reads, if the
// consumer wants all of them for ever.
func (k *Consumer) follow(ctx context.Context, start []cursor, emit func(context.Context, Batches) error) error {
	g, ctx := errgroup.WithContext(ctx)
	read := func(cursors []cursor) {
		g.Go(func() error { return k.reader(cursors, emit).run(ctx) })
	}
	if len(k.cfg.Partitions) == 0 && k.cfg.End.IsZero() {
		g.Go(func() error { return k.watchGrowth(ctx, len(start), read) })
	}
	read(start)
	return g.Wait()
}

func (k *Consumer) reader(cursors []cursor, emit func(context.Context, Batches) error) *reader {
	r := &reader{
		c: k.c, topic: k.cfg.Topic, between: k.cfg.Between, maxBytes: k.cfg.MaxBytes,
		open: make(map[int32]*cursor), emit: emit,
	}
	for _, c := range cursors {
		if !c.done() {
			r.open[c.partition] = &c
		}
	}
	return r
}

// watchGrowth calls read for partitions that were not there before, until ctx ends.
func (k *Consumer) watchGrowth(ctx context.Context, known int, read func([]cursor)) error {
	tick := time.NewTicker(k.growthInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		offsets, err := k.c.ListOffsets(ctx, k.cfg.Topic, LatestOffset())
		if err != nil || len(offsets) <= known {
			continue // What is wrong with the topic, the reader finds out.
		}
		var added []cursor
		for _, o := range offsets[known:] {
			added = append(added, cursor{
				partition: o.Partition, next: fromEarliest, end: withoutEnd, seen: o.EndOffset,
			})
		}
		known = len(offsets)
		read(added)
	}
}
