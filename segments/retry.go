package segments

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// RetryConfig says how often, and how far apart, a call is tried.
type RetryConfig struct {
	Tries   int           // in all, from 1
	MinWait time.Duration // before the second try; each wait is drawn from half to one and a half of it
	MaxWait time.Duration // what doubling the wait ends at
	// TryTimeout ends a try that takes longer; 0 leaves that to the caller's context. It
	// must be long enough for the largest object.
	TryTimeout time.Duration
}

// DefaultRetry lets a store throttle for some seconds.
func DefaultRetry() RetryConfig {
	return RetryConfig{Tries: 6, MinWait: 50 * time.Millisecond, MaxWait: 5 * time.Second, TryTimeout: 30 * time.Second}
}

// Validate lists every fault.
func (c RetryConfig) Validate() error {
	var faults []error
	if c.Tries < 1 {
		faults = append(faults, fmt.Errorf("segments: %d tries: must be 1 or more", c.Tries))
	}
	if c.MinWait <= 0 || c.MaxWait < c.MinWait {
		faults = append(faults, fmt.Errorf("segments: waits from %v to %v: must be positive and rise", c.MinWait, c.MaxWait))
	}
	if c.TryTimeout < 0 {
		faults = append(faults, fmt.Errorf("segments: try timeout %v is negative", c.TryTimeout))
	}
	return errors.Join(faults...)
}

// Retry returns the store with calls that fail as [ErrUnavailable] tried again, at
// jittered and growing distances, until the configured number of tries or the end
// of the context. [ErrFull] is told at once: it takes longer than that until there is room. The configuration must be valid.
//
// A Put whose first try failed as unavailable, and whose next one finds that the
// object exists, returns [ErrExists] and not success: the object may be its own or
// another's. The caller reads it back and compares. A Put that fails may still take
// effect later.
func Retry(store Store, config RetryConfig) Store {
	return &retrying{store, config}
}

type retrying struct {
	Store
	config RetryConfig
}

func (r *retrying) try(ctx context.Context, call func(context.Context) error) error {
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval, waits.MaxInterval, waits.Multiplier = r.config.MinWait, r.config.MaxWait, 2
	tries := 0
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		tries++
		last = r.once(ctx, call)
		if last != nil && (!errors.Is(last, ErrUnavailable) || errors.Is(last, ErrFull)) {
			return struct{}{}, backoff.Permanent(last)
		}
		return struct{}{}, last
	}, backoff.WithBackOff(waits), backoff.WithMaxTries(uint(r.config.Tries)), backoff.WithMaxElapsedTime(0))
	if err == nil || !errors.Is(last, ErrUnavailable) || errors.Is(last, ErrFull) {
		return last
	}
	if ended := Interrupted(ctx); ended != nil && !errors.Is(last, ctx.Err()) {
		return fmt.Errorf("%w, after %d tries: %w", ended, tries, last)
	}
	return fmt.Errorf("%w (after %d tries)", last, tries)
}

func (r *retrying) once(ctx context.Context, call func(context.Context) error) error {
	if r.config.TryTimeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, r.config.TryTimeout)
		defer stop()
	}
	return call(ctx)
}

func (r *retrying) Put(ctx context.Context, key string, body Body) error {
	return r.try(ctx, func(ctx context.Context) error {
		if parts := partsOf(body); parts != nil {
			parts.tried.Add(1)
		}
		return r.Store.Put(ctx, key, body)
	})
}

func (r *retrying) Get(ctx context.Context, key string, offset, length int64) (data []byte, size int64, err error) {
	err = r.try(ctx, func(ctx context.Context) (err error) {
		data, size, err = r.Store.Get(ctx, key, offset, length)
		return err
	})
	return data, size, err
}

// GetInto implements [IntoReader]. No try outlives the call: a late one would write to
// memory that is in other use by then.
func (r *retrying) GetInto(ctx context.Context, key string, into []byte, offset int64) (n int, err error) {
	err = r.try(ctx, func(ctx context.Context) (err error) {
		n, err = GetInto(ctx, r.Store, key, into, offset)
		return err
	})
	return n, err
}

// GetScattered implements [ScatterReader].
func (r *retrying) GetScattered(ctx context.Context, key string, into [][]byte, offset int64) (n int, err error) {
	err = r.try(ctx, func(ctx context.Context) (err error) {
		n, err = GetScattered(ctx, r.Store, key, into, offset)
		return err
	})
	return n, err
}

func (r *retrying) Delete(ctx context.Context, key string) error {
	return r.try(ctx, func(ctx context.Context) error { return r.Store.Delete(ctx, key) })
}

func (r *retrying) List(ctx context.Context, prefix, after string, limit int) (objects []ObjectInfo, err error) {
	err = r.try(ctx, func(ctx context.Context) (err error) {
		objects, err = r.Store.List(ctx, prefix, after, limit)
		return err
	})
	return objects, err
}
