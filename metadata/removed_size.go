package metadata

import "context"

type removedSizeKey struct{}

// WithRemovedSize tells observers of a Delete how large the row is that it removes, in bytes of key and
// value: deletes are billed by that, and whoever has read the row knows it.
func WithRemovedSize(ctx context.Context, size int) context.Context {
	return context.WithValue(ctx, removedSizeKey{}, size)
}

// RemovedSize is what WithRemovedSize told, or 0.
func RemovedSize(ctx context.Context) int {
	size, _ := ctx.Value(removedSizeKey{}).(int)
	return size
}
