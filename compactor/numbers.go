package compactor

import (
	"context"
	"errors"
	"slices"
	"sync"
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
	if len(n.doubts) == 0 {
		n.cluster.SetMergeFloor(n.gateway, n.last+1)
	}
}

// patience is for how long a swap is asked for at first: longer than a takeover takes. Whoever sequences one partition may live and not be
// reached; the others must not wait for that.
const patience = 30 * time.Second

// errDoubts says that a swap was not asked for, as too many are in doubt, or one of its partition.
var errDoubts = errors.New("compactor: earlier swaps are in doubt")

// swap has the cluster swap, and keeps a swap in mind whose outcome stays unknown. The more are in doubt, the less is waited for another.
// Those of one partition come one after the other: who did not answer the last one would not answer this one either.
func (n *numbers) swap(ctx context.Context, w *metadata.Swap) (metadata.SwapOutcome, error) {
	if !n.free(w.Partition) {
		return 0, errDoubts
	}
	limited, cancel := context.WithTimeout(ctx, patience/time.Duration(1+len(n.doubts)))
	defer cancel()
	outcome, err := n.cluster.Swap(limited, w)
	if errors.Is(err, metadata.ErrUnknown) || err != nil && limited.Err() != nil && !errors.Is(err, metadata.ErrClosed) {
		if n.doubts = append(n.doubts, w); n.due.IsZero() {
			n.due = time.Now().Add(retryAfter)
		}
	}
	return outcome, err
}

// free says whether a swap of a partition can be asked for: none of it is in doubt, and of others not too many.
func (n *numbers) free(id metadata.PartitionID) bool {
	return len(n.doubts) < mostDoubts && !slices.ContainsFunc(n.doubts, func(w *metadata.Swap) bool { return w.Partition == id })
}

// clear asks again for what is in doubt: under its number a swap is taken once at most, and any answer that says what came of it
// ends the doubt. What stands against an answer may end: a row is mended, say.
func (n *numbers) clear(ctx context.Context) {
	if n.begin(); len(n.doubts) == 0 { // they were another id's
		return
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	open := make([]bool, len(n.doubts))
	var asking sync.WaitGroup
	for i, w := range n.doubts { // all at once: one that gets no answer holds up none
		asking.Go(func() {
			_, err := n.cluster.Swap(limited, w)
			open[i] = err != nil && !errors.Is(err, metadata.ErrClosed)
		})
	}
	asking.Wait()
	var left []*metadata.Swap
	for i, w := range n.doubts {
		if open[i] {
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
