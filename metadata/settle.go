package metadata

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/varvelog/varve/internal/seeded"
)

// A conditional write has three outcomes, yes, no and unknown, and a "no" may hide
// a "yes, by an earlier try". PutSettled and DeleteSettled are the one place where
// the third is resolved into the other two.

// NewBackOff makes the pauses between the tries of one call. Returning
// backoff.Stop gives up as if the context had ended.
type NewBackOff func() backoff.BackOff

// DefaultBackOff pauses 20 ms at first, 1 s at most, with jitter, and never gives up:
// the context does.
func DefaultBackOff() backoff.BackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval:     20 * time.Millisecond,
		RandomizationFactor: 0.5,
		Multiplier:          2,
		MaxInterval:         time.Second,
	}
}

// PutSettled puts the row if the condition holds, and tries the same put, with the
// same nonce, until it knows what came of it. A nil newBackOff is DefaultBackOff.
//
//   - nil: the row took effect, once.
//   - ErrConflict: it did not and will not, another row is in its way.
//   - ErrUnavailable: it did not, and nobody could be asked before the context ended.
//   - ErrUnknown: a try may have taken effect, or still may: the context ended, or a
//     row with a higher stamp is there, which may stand in the way or may have
//     replaced ours.
//   - What else Put returns, when no try before it was in doubt.
//
// This rests on rows of one key being replaced under rising stamps only. Where rows
// are never replaced, as in journals, all that race for a key must carry
// the same stamp: then "another row" is always ErrConflict. Rows that race with
// Always can be overwritten by a try that lands late: leave it to rows with
// one writer.
func PutSettled(ctx context.Context, t Table, row Row, cond Condition, newBackOff NewBackOff) error {
	s := newSettler(ctx, "put", row.Key, newBackOff)
	for {
		err := t.Put(ctx, row, cond)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrUnknown):
			s.doubt = true
		case errors.Is(err, ErrConflict):
			// Whoever carries the request may have sent it twice: look before believing it.
		case errors.Is(err, ErrUnavailable):
			if err := s.pause(err); err != nil {
				return err
			}
			continue
		default:
			return s.fail(err)
		}
		conflict := errors.Is(err, ErrConflict)
		stored, exists, readErr := s.readBack(t, err)
		switch {
		case readErr != nil:
			return readErr
		case exists && (stored.Nonce == row.Nonce || s.doubt && seeded.Has(seeded.IgnoreNonce)):
			return nil
		case conflict && !s.doubt:
			return err
		case cond.Holds(stored.Stamp, exists):
			if err := s.pause(err); err != nil {
				return err
			}
		case exists && stored.Stamp.Compare(row.Stamp) > 0:
			return fmt.Errorf("%w: put %s at %s: a row at %s is there, which may have replaced it",
				ErrUnknown, row.Key, row.Stamp, stored.Stamp)
		default:
			return fmt.Errorf("%w: put %s at %s %s: another row at %s won", ErrConflict, row.Key, row.Stamp, cond, stored.Stamp)
		}
	}
}

// DeleteSettled removes the row if the condition holds, and tries until it knows
// that the row is gone. A nil newBackOff is DefaultBackOff.
//
//   - nil: the row is gone, by this call or, when a try was in doubt, by another.
//   - ErrConflict: the condition does not hold for what is there now. When a try was
//     in doubt it may be a newer row than the one that was to be removed.
//   - ErrUnavailable, ErrUnknown and other errors: as of [PutSettled].
func DeleteSettled(ctx context.Context, t Table, key Key, cond Condition, newBackOff NewBackOff) error {
	s := newSettler(ctx, "delete", key, newBackOff)
	for {
		err := t.Delete(ctx, key, cond)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrUnknown):
			s.doubt = true
		case errors.Is(err, ErrConflict):
			if !s.doubt {
				return err
			}
		case errors.Is(err, ErrUnavailable):
			if err := s.pause(err); err != nil {
				return err
			}
			continue
		default:
			return s.fail(err)
		}
		stored, exists, readErr := s.readBack(t, err)
		switch {
		case readErr != nil:
			return readErr
		case !exists:
			return nil
		case !cond.Holds(stored.Stamp, exists):
			return fmt.Errorf("%w: delete %s %s: the row there is at %s", ErrConflict, key, cond, stored.Stamp)
		}
		if err := s.pause(err); err != nil {
			return err
		}
	}
}

// settler keeps what the tries of one write share.
type settler struct {
	ctx     context.Context
	op      string
	key     Key
	backOff backoff.BackOff
	// doubt is set once a try may have taken effect.
	doubt bool
}

func newSettler(ctx context.Context, op string, key Key, newBackOff NewBackOff) *settler {
	if newBackOff == nil {
		newBackOff = DefaultBackOff
	}
	b := newBackOff()
	b.Reset()
	return &settler{ctx: ctx, op: op, key: key, backOff: b}
}

// readBack returns the row that is there now, or the error to end with. last is why
// it is asked for.
func (s *settler) readBack(t Table, last error) (Row, bool, error) {
	for {
		row, err := t.Get(s.ctx, s.key, Strong)
		switch {
		case err == nil:
			return row, true, nil
		case errors.Is(err, ErrNotFound):
			return Row{}, false, nil
		}
		if errors.Is(err, ErrUnavailable) {
			if err = wait(s.ctx, s.backOff); err == nil {
				continue
			}
		}
		// Without the row, even a first "no" may be our own doing.
		return Row{}, false, s.unknown(fmt.Errorf("%w; before it: %w", err, last))
	}
}

// pause waits before the next try, or returns the error to end with.
func (s *settler) pause(last error) error {
	if err := wait(s.ctx, s.backOff); err != nil {
		return s.fail(fmt.Errorf("%w; last: %w", err, last))
	}
	return nil
}

// fail ends a write that cannot be settled: in doubt it is unknown, whatever ended it.
func (s *settler) fail(cause error) error {
	if !s.doubt {
		return cause
	}
	return s.unknown(cause)
}

func (s *settler) unknown(cause error) error {
	// The cause's own kind, say ErrDenied or ErrConflict, is about one try and must not be taken
	// for the outcome of the write; only the context's errors show through.
	err := fmt.Errorf("%w: %s %s: %v", ErrUnknown, s.op, s.key, cause)
	if ctxErr := s.ctx.Err(); ctxErr != nil {
		err = fmt.Errorf("%w: %w", err, ctxErr)
	}
	return err
}

var errGaveUp = errors.New("gave up after the last try")

// wait pauses for the next interval, or says why there is none.
func wait(ctx context.Context, b backoff.BackOff) error {
	d := b.NextBackOff()
	if d == backoff.Stop {
		return errGaveUp
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
