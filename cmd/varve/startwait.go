package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// startWait is how a start waits for a bucket or table that does not answer: gateway and
// servers may be started at once, and one that throttles does so for seconds.
type startWait struct {
	until time.Time
	log   *slog.Logger
}

// try makes a check until it succeeds, or fails because of what waiting does not mend, or the
// time is over. A place on this host answers at once or not at all.
func (w *startWait) try(ctx context.Context, l location, check func(context.Context) error) error {
	pauses, began := metadata.DefaultBackOff(), time.Now()
	for tries := 1; ; tries++ {
		err := w.once(ctx, check)
		if err == nil && tries > 1 {
			w.log.Info("it answers", "place", l.String(), "after", time.Since(began).Round(time.Millisecond).String(), "tries", tries)
		}
		if err == nil || l.local() || !unanswered(err) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w while the start waited for it: %w", context.Cause(ctx), err)
		}
		next := time.After(pauses.NextBackOff())
		if left := time.Until(w.until); left > 0 {
			w.log.Warn("the start waits for a bucket or table that does not answer as it should",
				"place", l.String(), "error", err, "gives_up_in", left.Round(time.Second).String())
		} else {
			return fmt.Errorf("%w (%d tries in %s: --start-timeout)", err, tries, time.Since(began).Round(time.Millisecond))
		}
		select {
		case <-next:
		case <-ctx.Done():
		}
	}
}

// once bounds one try.
func (w *startWait) once(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return check(ctx)
}

// unanswered says that nobody refused anything: trying again may help.
func unanswered(err error) bool {
	return errors.Is(err, segments.ErrUnavailable) || errors.Is(err, metadata.ErrUnavailable) || errors.Is(err, metadata.ErrUnknown)
}
