package client

import (
	"context"
	"errors"
	"sync"
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

// appender gives the appends to one partition their sequence numbers.
type appender struct {
	mu sync.Mutex
}

// Append appends records to one partition as one batch, with conditions, and waits for the commit. It is
// repeated safely within the request timeout; ErrUnknownOutcome says that not even that told
// what became of it. Appends of one Client to one partition follow each other.
func (c *Client) Append(ctx context.Context, topic string, partition int32, records []Record, opts AppendOptions) (Ack, error) {
	return Ack{}, errors.ErrUnsupported
}
