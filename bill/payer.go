package bill

import (
	"context"

	"github.com/varvelog/varve/metadata"
)

// payer says for whom a call is made.
type payer struct {
	shares []Share
	merge  bool
}

type payerKey struct{}

// ForTopic says that calls with this context are for one topic's readers.
func ForTopic(ctx context.Context, id metadata.TopicID) context.Context {
	return Shared(ctx, []Share{{Topic: id, Weight: 1}})
}

// Shared says that calls with this context are for several topics, by weight. The shares must not
// change afterwards. Without any they are for the cluster.
func Shared(ctx context.Context, shares []Share) context.Context {
	return context.WithValue(ctx, payerKey{}, payer{shares: shares})
}

// Merging says that calls with this context are a merge's, for one topic: GETs and partitions' rows
// count as such.
func Merging(ctx context.Context, id metadata.TopicID) context.Context {
	return MergingShared(ctx, []Share{{Topic: id, Weight: 1}})
}

// MergingShared is Merging for several topics, by weight, as with Shared.
func MergingShared(ctx context.Context, shares []Share) context.Context {
	return context.WithValue(ctx, payerKey{}, payer{shares: shares, merge: true})
}

// payerOf is whom a call is for; said tells whether anybody said so.
func payerOf(ctx context.Context) (p payer, said bool) {
	p, said = ctx.Value(payerKey{}).(payer)
	return p, said
}
