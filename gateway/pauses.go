package gateway

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/varvelog/varve/metadata"
)

// readTries is how often a read of the table is tried before its caller is told.
const readTries = 5

// fewPauses are those between tries of reads.
func fewPauses() backoff.BackOff {
	return &limitedPauses{BackOff: metadata.DefaultBackOff(), left: readTries - 1}
}

type limitedPauses struct {
	backoff.BackOff
	left int
}

func (l *limitedPauses) NextBackOff() time.Duration {
	if l.left == 0 {
		return backoff.Stop
	}
	l.left--
	return l.BackOff.NextBackOff()
}

// pause waits for the next try.
func pause(ctx context.Context, pauses backoff.BackOff) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pauses.NextBackOff()):
		return nil
	}
}
