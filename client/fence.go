package client

import (
	"context"
	"errors"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// FenceOptions are the conditions of a Fence.
type FenceOptions struct {
	// CurrentToken: set the token only if the partition's is this one now. Otherwise ErrFenced; the server does not
	// tell the other one.
	CurrentToken *string
	// ExpectedOffset: set it only if this is the partition's next offset. Otherwise ErrOffsetMismatch, with the
	// actual one.
	ExpectedOffset *int64
}

// FenceResult is what a Fence came to.
type FenceResult struct {
	// Token is the partition's.
	Token string
	// NextOffset is that of the next append: appends that name another token get none from here on.
	NextOffset int64
}

// Fence sets a partition's fencing token, of at most 36 bytes: from then on appends that name a token succeed only with
// this one. Appends that name none are not held back. The empty token is none. Setting the token that is there
// succeeds, whatever the options say, so that a Fence with CurrentToken is repeated safely within the request timeout, if
// no token is ever used again. One without is not repeated when its outcome is unknown.
//
// Errors: ErrFenced, ErrOffsetMismatch, ErrInvalid, ErrTopicNotFound, ErrPartitionNotFound, ErrUnavailable, ErrClosed,
// and ctx's. With ErrUnknownOutcome the token may have been set, whatever else the error is: an earlier attempt had
// no answer. Fence again, to know.
func (c *Client) Fence(ctx context.Context, topic string, partition int32, token string, opts FenceOptions) (FenceResult, error) {
	req := &varvev1.FenceRequest{
		Topic: topic, Partition: partition, Token: token, CurrentToken: opts.CurrentToken, ExpectedOffset: opts.ExpectedOffset,
	}
	policy := untilSettled
	if opts.CurrentToken == nil {
		policy = onlyDefinite // an attempt that comes late must not replace the token of somebody after it
	}
	res, err := call(ctx, c, policy, func(ctx context.Context, e *endpoint) (*varvev1.FenceResponse, error) {
		return e.log.Fence(ctx, req)
	})
	if err != nil {
		var failure *Error
		if errors.As(err, &failure) && failure.Topic == "" {
			failure.Topic, failure.Partition = topic, partition
		}
		return FenceResult{}, err
	}
	return FenceResult{Token: res.GetToken(), NextOffset: res.GetNextOffset()}, nil
}
