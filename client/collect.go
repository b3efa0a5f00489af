package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// CollectOptions say what a collection of garbage is to do.
type CollectOptions struct {
	// DryRun deletes nothing, and tells what would go if there were no grace.
	DryRun bool
	// Force deletes more than the share that may go at once.
	Force bool
	// Wait waits until the grace of what was found is over, and returns when it is gone.
	Wait bool
}

// Collection is what a collection of garbage did, or, as a dry run, would do.
type Collection struct {
	ClusterID string
	DryRun    bool
	// Objects are the segments in the bucket, with their bytes, Named those that something names.
	Objects, ObjectBytes, Named int64
	// Kept are objects that nothing names and that stay, by why: unsettled, unheard, unknown, grace, named, unclear,
	// unreadable, too_many, refused.
	Kept map[string]int64
	// Deleted objects, and their bytes.
	Deleted, DeletedBytes int64
	// Rows that were deleted, RowsWaiting that wait for the grace, Gateways whose rows were deleted.
	Rows, RowsWaiting, Gateways int64
	// Unasked are gateways that did not say what they know: nothing goes of gateways that were closed since they did last.
	Unasked []string
	// Unclear are partitions, topic id/number, that cannot be read: objects with records of theirs stay.
	Unclear []string
	// Refusal is why the bucket did not delete an object; empty: it did.
	Refusal string
}

// Collect has a gateway delete objects and rows that nothing names and nothing ever will. It takes minutes in a large
// cluster, and with Wait the grace: ctx bounds it.
func (c *Client) Collect(ctx context.Context, opts CollectOptions) (*Collection, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// It may be made again: what one collection has deleted is nothing to the next.
	m, err := callStream(ctx, c, func(ctx context.Context, e *endpoint) (*varvev1.CollectResponse, error) {
		stream, err := e.cluster.Collect(ctx, &varvev1.CollectRequest{DryRun: opts.DryRun, Force: opts.Force, Wait: opts.Wait})
		if err != nil {
			return nil, err
		}
		m, err := stream.Receive()
		return m, errors.Join(err, stream.Close())
	})
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("collect: %w: the gateway ended it without an answer", ErrUnavailable)
	}
	if err != nil {
		return nil, err
	}
	return &Collection{ClusterID: m.GetClusterId(), DryRun: m.GetDryRun(), Objects: m.GetObjects(), ObjectBytes: m.GetObjectBytes(), Named: m.GetNamed(),
		Kept: m.GetKept(), Deleted: m.GetDeleted(), DeletedBytes: m.GetDeletedBytes(), Rows: m.GetRows(), RowsWaiting: m.GetRowsWaiting(),
		Gateways: m.GetGateways(), Unasked: m.GetUnasked(), Unclear: m.GetUnclear(), Refusal: m.GetRefusal()}, nil
}
