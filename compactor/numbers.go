package compactor

import (
	"context"
	"errors"
	"time"

	"github.com/varvelog/varve/metadata"
)

// mostDoubts bounds the swaps that are kept to be asked for again.
const mostDoubts = 64

// numbers are those of one compactor, for segments and swaps: they only rise, and begin anew with each id of its gateway.
type numbers struct {
	cluster Cluster
	gateway metadata.GatewayID
	last    uint64
	// doubts are swaps whose outcome is not known, so that nothing can be called settled. They are asked for again when due
	// has come, tries times so far.
	doubts []*metadata.Swap
	due    time.Time
	tries  int
	// lost: more were in doubt than are kept. The floor stays where it is for as long as the id does.
	lost bool
}

// begin returns the uploader to work under. What was under way before has ended.
func (n *numbers) begin() metadata.GatewayID {
	if id := n.cluster.ID(); id != n.gateway {
		*n = numbers{cluster: n.cluster, gateway: id}
	}
	return metadata.MergerID(n.gateway)
}

func (n *numbers) take() uint64 {
	n.last++
	return n.last
}

// settle says that nothing is under way.
func (n *numbers) settle() {
	if len(n.doubts) == 0 && !n.lost {
		n.cluster.SetMergeFloor(n.gateway, n.last+1)
	}
}

// swap has the cluster swap, and keeps a swap in mind whose outcome stays unknown.
func (n *numbers) swap(ctx context.Context, w *metadata.Swap) (metadata.SwapOutcome, error) {
	outcome, err := n.cluster.Swap(ctx, w)
	switch {
	case !errors.Is(err, metadata.ErrUnknown) && (err == nil || ctx.Err() == nil):
	case len(n.doubts) == mostDoubts:
		n.lost = true
	default:
		if n.doubts = append(n.doubts, w); n.due.IsZero() {
			n.due = time.Now().Add(retryAfter)
		}
	}
	return outcome, err
}

// clear asks again for what is in doubt: under its number a swap is taken once at most, and any answer that says what came of it
// ends the doubt. What stands against an answer may end: a row is mended, say.
func (n *numbers) clear(ctx context.Context) {
	if n.begin(); len(n.doubts) == 0 { // they were another id's
		return
	}
	left := n.doubts[:0]
	for _, w := range n.doubts {
		if _, err := n.cluster.Swap(ctx, w); err != nil && !errors.Is(err, metadata.ErrClosed) {
			left = append(left, w)
		}
	}
	n.doubts = left
	if n.due = (time.Time{}); len(left) > 0 {
		n.tries++
		n.due = time.Now().Add(min(retryAfter<<min(n.tries, 10), time.Hour))
		return
	}
	n.tries = 0
	n.settle()
}
