package client

import (
	"context"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/segments/batch"
)

// AppendOptions are the conditions of an Append.
type AppendOptions struct {
	// ExpectedOffset: append only if this is the partition's next offset. Otherwise ErrOffsetMismatch,
	// with the actual one.
	ExpectedOffset *int64
	// FencingToken: append only if this is the partition's token. Otherwise ErrFenced.
	FencingToken *string
	// Codec compresses the batch.
	Codec Codec
}

func (o AppendOptions) conditions(req *varvev1.ProduceRequest) {
	req.ExpectedOffset, req.FencingToken = o.ExpectedOffset, o.FencingToken
}

// appender gives the appends to one partition their sequence numbers, so that one whose answer was lost
// can be repeated: the server knows it again before it looks at its conditions.
type appender struct {
	// turn holds one token: appends follow each other.
	turn chan struct{}
	// next is the producer id, and the sequence of the next append. known is false before the first
	// append, and after one whose outcome stayed unknown.
	next  batch.BuildOptions
	known bool
}

// Append appends records to one partition as one batch, with conditions, and waits for the commit. It is
// repeated safely within the request timeout; ErrUnknownOutcome says that not even that told
// what became of it. Appends of one Client to one partition follow each other.
//
// Errors: ErrOffsetMismatch, ErrFenced, ErrInvalid, ErrTopicNotFound, ErrPartitionNotFound, ErrUnavailable,
// ErrUnknownOutcome, ErrClosed, and ctx's.
func (c *Client) Append(ctx context.Context, topic string, partition int32, records []Record, opts AppendOptions) (Ack, error) {
	if c.closed() {
		return Ack{}, errClientClosed
	}
	builder, err := buildAll(records, opts.Codec)
	if err != nil {
		return Ack{}, err
	}
	where := topicPartition{topic, partition}
	a := c.appender(where)
	select {
	case <-a.turn:
		defer func() { a.turn <- struct{}{} }()
	case <-ctx.Done():
		return Ack{}, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	ack, failure := c.appendOnce(ctx, a, where, builder, opts)
	if failure != nil {
		return Ack{}, failure
	}
	return ack, nil
}

func (c *Client) appender(where topicPartition) *appender {
	c.appendersMu.Lock()
	defer c.appendersMu.Unlock()
	a := c.appenders[where]
	if a == nil {
		a = &appender{turn: make(chan struct{}, 1)}
		a.turn <- struct{}{}
		c.appenders[where] = a
	}
	return a
}

// appendOnce tries until it knows.
func (c *Client) appendOnce(ctx context.Context, a *appender, where topicPartition, builder *batch.Builder, opts AppendOptions) (Ack, error) {
	t := c.newTries()
	doubtful := false
	for {
		if err := c.identify(ctx, a, builder.Count()); err != nil {
			return Ack{}, err
		}
		data, err := builder.Build(a.next)
		if err != nil {
			return Ack{}, invalidf("%v", err)
		}
		ack, failure := c.append(ctx, t.next(), where, AcksCommitted, data, opts)
		if failure == nil {
			c.servers.succeeded(t.last)
			a.next.BaseSequence += int32(builder.Count())
			return ack, nil
		}
		t.failed(failure)
		doubtful = doubtful || failure.UnknownOutcome
		if failure.Reason == reasonUnknownProducer && !doubtful && a.next.BaseSequence > 0 {
			a.known = false // Forgotten since the last append; this one was not taken.
			continue
		}
		if !failure.Retriable || !t.pause(ctx, failure) {
			// Whatever it was, the next append must not be taken for a repetition of this one.
			a.known = a.known && !doubtful
			failure.UnknownOutcome = doubtful
			return Ack{}, failure
		}
	}
}

// identify sees to a producer id that has room for so many more sequence numbers.
func (c *Client) identify(ctx context.Context, a *appender, records int) error {
	if a.known && int64(a.next.BaseSequence)+int64(records) <= maxSequence {
		return nil
	}
	id, err := c.initProducer(ctx)
	if err != nil {
		return err
	}
	a.next, a.known = batch.BuildOptions{ProducerID: id.id, ProducerEpoch: id.epoch}, true
	return nil
}

// buildAll encodes records in memory.
func buildAll(records []Record, codec Codec) (*batch.Builder, error) {
	if len(records) == 0 {
		return nil, invalidf("no records")
	}
	builder := batch.NewBuilder(codec)
	now := time.Now()
	for i := range records {
		if err := builder.Append(entryOf(&records[i], now)); err != nil {
			return nil, invalidf("record %d: %v", i, err)
		}
	}
	return builder, nil
}

// entryOf is a record as batches hold it; now is for a record without a timestamp.
func entryOf(rec *Record, now time.Time) batch.Record {
	when := rec.Timestamp
	if when.IsZero() {
		when = now
	}
	return batch.Record{Timestamp: when.UnixMilli(), Key: rec.Key, Value: rec.Value, Headers: rec.Headers}
}
