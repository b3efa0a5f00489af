package metadata

import (
	"context"
	"errors"
	"fmt"
)

// Retry returns the table with reads that are tried again while they fail with
// ErrUnavailable, until the context ends or the pauses do. Writes are tried once:
// what came of them is for [PutSettled] and [DeleteSettled]. A nil newBackOff is
// DefaultBackOff.
func Retry(t Table, newBackOff NewBackOff) Table {
	if newBackOff == nil {
		newBackOff = DefaultBackOff
	}
	return &retried{Table: t, newBackOff: newBackOff}
}

type retried struct {
	Table
	newBackOff NewBackOff
}

func (r *retried) Get(ctx context.Context, key Key, c Consistency) (Row, error) {
	return retry(ctx, r.newBackOff, func() (Row, error) { return r.Table.Get(ctx, key, c) })
}

func (r *retried) Range(ctx context.Context, rng Range) ([]Row, error) {
	return retry(ctx, r.newBackOff, func() ([]Row, error) { return r.Table.Range(ctx, rng) })
}

func retry[T any](ctx context.Context, newBackOff NewBackOff, read func() (T, error)) (T, error) {
	out, err := read()
	if !errors.Is(err, ErrUnavailable) {
		return out, err
	}
	b := newBackOff()
	b.Reset()
	for errors.Is(err, ErrUnavailable) {
		if stop := wait(ctx, b); stop != nil {
			return out, fmt.Errorf("%w; %w", stop, err)
		}
		out, err = read()
	}
	return out, err
}
