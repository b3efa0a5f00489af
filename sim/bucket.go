package sim

import (
	"context"
	"errors"
	"fmt"

	"github.com/varvelog/varve/segments"
)

// bucket is the bucket as one process sees it.
type bucket struct {
	way   *way
	store segments.Store
	paths *paths
}

var _ segments.Store = (*bucket)(nil)

func (b *bucket) call(ctx context.Context, key string, effect func(context.Context) error) error {
	err := b.way.call(ctx, key, func() error { return effect(context.WithoutCancel(ctx)) })
	if f := (*failure)(nil); errors.As(err, &f) {
		return fmt.Errorf("%w: %w", segments.ErrUnavailable, f)
	}
	return err
}

// Put implements segments.Store.
func (b *bucket) Put(ctx context.Context, key string, body segments.Body) error {
	kept := segments.NewBody(segments.Bytes(body)) // the effect may outlive the call
	return b.call(ctx, key, func(ctx context.Context) error {
		return b.way.ambushes.around(b.way, uploadStep, func() error {
			err := b.store.Put(ctx, key, kept)
			if err == nil {
				b.paths.object(key, false)
			}
			return err
		})
	})
}

// Get implements segments.Store.
func (b *bucket) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	type part struct {
		data []byte
		size int64
	}
	found := make(chan part, 2) // the call may outlive its caller
	err := b.call(ctx, key, func(ctx context.Context) error {
		data, size, err := b.store.Get(ctx, key, offset, length)
		found <- part{data, size}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	p := <-found
	return p.data, p.size, nil
}

// Delete implements segments.Store.
func (b *bucket) Delete(ctx context.Context, key string) error {
	return b.call(ctx, key, func(ctx context.Context) error {
		_, _, err := b.store.Get(ctx, key, 0, 1)
		there := err == nil
		if err = b.store.Delete(ctx, key); err == nil && there {
			b.paths.object(key, true)
		}
		return err
	})
}

// List implements segments.Store.
func (b *bucket) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	found := make(chan []segments.ObjectInfo, 2)
	err := b.call(ctx, prefix, func(ctx context.Context) error {
		list, err := b.store.List(ctx, prefix, after, limit)
		found <- list
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-found, nil
}

func (b *bucket) String() string { return "sim://bucket" }
