package client

import (
	"context"
	"errors"
)

// Producer gathers records into batches and sends them. It is safe for concurrent use.
type Producer struct {
	c   *Client
	cfg ProducerConfig
}

// NewProducer returns a producer, which must be closed. It contacts no server before the first record.
func (c *Client) NewProducer(cfg ProducerConfig) (*Producer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Producer{c: c, cfg: cfg.withDefaults()}, nil
}

// Produce takes a record into the next batch of its partition, and copies its bytes. It waits while
// the buffer is full, and at the first record of a topic for the answer how many partitions it has; ctx
// ends this waiting and nothing else.
//
// When Produce returns nil, done (if it is not nil) is called exactly once, in order of offset within a
// partition; it must return soon and must not call Flush, Close or ProduceSync. When Produce returns
// an error the record was not taken, and done is not called.
func (p *Producer) Produce(ctx context.Context, rec Record, done func(Ack, error)) error {
	return errors.ErrUnsupported
}

// ProduceSync produces records without lingering and waits for all of their acks, which are in the order
// of the records. The error is the first one. When ctx ends the waiting the records stay on their way,
// and the error is ErrUnknownOutcome.
func (p *Producer) ProduceSync(ctx context.Context, recs ...Record) ([]Ack, error) {
	return nil, errors.ErrUnsupported
}

// Flush sends what is there without lingering and waits until every record that was taken before has
// its ack or its error. It returns only ctx's error: failures go to callbacks and OnBatch.
func (p *Producer) Flush(ctx context.Context) error { return errors.ErrUnsupported }

// Close flushes, then ends the producer. If ctx ends first, what is left fails: with ErrClosed if it was
// never sent, else with ErrUnknownOutcome. Close returns an error if any record was lost to it.
func (p *Producer) Close(ctx context.Context) error { return errors.ErrUnsupported }

// BufferedBytes is how much was taken and has no ack yet, at most MaxBufferedBytes.
func (p *Producer) BufferedBytes() int { return 0 }
