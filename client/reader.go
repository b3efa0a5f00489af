package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// Offsets of a cursor that are not known.
const (
	fromEarliest = -1
	withoutEnd   = -1
)

// cursor is where a reader is in one partition.
type cursor struct {
	partition int32
	// next offset to read, or fromEarliest until the first answer.
	next int64
	// end is exclusive, or withoutEnd.
	end int64
	// seen is the highest high watermark that any server told.
	seen int64
}

func (c *cursor) done() bool { return c.end != withoutEnd && c.next != fromEarliest && c.next >= c.end }

// reader follows some partitions of a topic over one stream at a time, and goes on where it was when that
// breaks.
type reader struct {
	c        *Client
	topic    string
	between  *TimeRange
	maxBytes int
	open     map[int32]*cursor
	// emit takes a message; an error ends the reader.
	emit func(context.Context, Batches) error
}

// run returns nil when every cursor is done.
func (r *reader) run(ctx context.Context) error {
	t := r.c.newTries()
	for len(r.open) > 0 {
		if r.c.closed() {
			return errClientClosed
		}
		progress, err := r.stream(ctx, t.next())
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case len(r.open) == 0:
			return nil
		}
		if progress {
			t.reset()
			r.c.servers.succeeded(t.last)
		}
		// A stream that ends well before its partitions do comes from a gateway that drains.
		failure := newError(connect.CodeUnavailable, "the stream ended early")
		failure.Retriable = true
		if err != nil {
			failure = errorOf(err)
			failure.UnknownOutcome = false
		}
		if !failure.Retriable {
			return failure
		}
		t.failed(failure)
		if !t.pause(ctx, failure) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return failure
		}
	}
	return nil
}

// stream reads until the stream ends, and reports whether anything came.
func (r *reader) stream(ctx context.Context, e *endpoint) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := e.log.Consume(ctx, r.request())
	if err != nil {
		return false, err
	}
	defer stream.Close()
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) && !isConnectError(err) {
			return progress, nil
		}
		if err != nil {
			return progress, err
		}
		progress = true
		if err := r.take(ctx, msg); err != nil {
			return progress, err
		}
	}
}

// isConnectError tells the clean end of a stream from an error that only wraps io.EOF.
func isConnectError(err error) bool {
	var e *connect.Error
	return errors.As(err, &e)
}

func (r *reader) request() *varvev1.ConsumeRequest {
	req := &varvev1.ConsumeRequest{Topic: r.topic, MaxMessageBytes: int32(r.maxBytes), TimeRange: r.between.message()}
	for _, c := range r.open {
		start := &varvev1.Place{At: &varvev1.Place_Earliest{Earliest: true}}
		if c.next != fromEarliest {
			start.At = &varvev1.Place_Offset{Offset: c.next}
		}
		pr := &varvev1.PartitionRange{Partition: c.partition, Start: start, SeenHighWatermark: c.seen}
		if c.end != withoutEnd {
			pr.End = &varvev1.Place{At: &varvev1.Place_Offset{Offset: c.end}}
		}
		req.Partitions = append(req.Partitions, pr)
	}
	slices.SortFunc(req.Partitions, func(a, b *varvev1.PartitionRange) int { return int(a.Partition - b.Partition) })
	return req
}

// take passes on what a message brings, and moves the cursor. A server that leaves offsets out, or goes
// back, ends the reader; one that is behind what others told ends the stream.
func (r *reader) take(ctx context.Context, msg *varvev1.ConsumeResponse) error {
	c := r.open[msg.GetPartition()]
	if c == nil {
		return r.broken(msg.GetPartition(), "the server sends a partition that was not asked for, or has ended")
	}
	if msg.GetHighWatermark() < c.seen {
		return behind(r.topic, c.partition, msg.GetHighWatermark(), c.seen)
	}
	if c.next == fromEarliest {
		c.next = msg.GetStartOffset()
	}
	if msg.GetStartOffset() > c.next || msg.GetNextOffset() < c.next {
		return r.broken(c.partition, fmt.Sprintf("the server goes from offset %d to %d, but the reader is at %d",
			msg.GetStartOffset(), msg.GetNextOffset(), c.next))
	}
	b := Batches{
		Partition: c.partition, Data: msg.GetRecordBatches(), StartOffset: c.next, NextOffset: msg.GetNextOffset(),
		LogStart: msg.GetLogStartOffset(), HighWatermark: msg.GetHighWatermark(),
	}
	moved := *c
	moved.next, moved.seen = b.NextOffset, b.HighWatermark
	b.End = msg.GetEnd() || moved.done()
	if len(b.Data) > 0 || b.End || moved.next != c.next {
		if err := r.emit(ctx, b); err != nil {
			return err
		}
	}
	*c = moved
	if b.End {
		delete(r.open, c.partition)
	}
	return nil
}

// behind says that a server knows less than others did. Another one is asked then.
func behind(topic string, partition int32, end, seen int64) *Error {
	err := newError(connect.CodeUnavailable, fmt.Sprintf("the server's log ends at offset %d, but another one told of %d", end, seen))
	err.Topic, err.Partition, err.Retriable = topic, partition, true
	return err
}

func (r *reader) broken(partition int32, message string) *Error {
	err := newError(connect.CodeDataLoss, message)
	err.Topic, err.Partition = r.topic, partition
	return err
}
