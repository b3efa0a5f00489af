package gateway

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/varvelog/varve/segments"
)

// generationPace is how often the generation rises while something commits: a
// table that was rolled back by more than this is noticed.
const generationPace = time.Minute

// generation is a number that rises in the table and is then written to the bucket. A
// bucket that knows a higher one than the table tells that the table was restored
// from an older copy: offsets would be given twice.
type generation struct {
	gateway *Gateway
	recent  since // it was raised within the pace
}

func (n *generation) prefix() string { return n.gateway.cluster.ID + "/generation/" }

// check refuses a table that was rolled back. First the bucket is listed, then the
// table read: in the other order a generation raised in between would look like one.
func (n *generation) check(ctx context.Context) error {
	highest, after := uint64(0), ""
	for {
		objects, err := n.gateway.notes.List(ctx, n.prefix(), after, 1000)
		if err != nil {
			return fmt.Errorf("list generations in %s: %w", n.gateway.store, err)
		}
		if len(objects) == 0 {
			break
		}
		for _, o := range objects {
			if number, err := strconv.ParseUint(strings.TrimPrefix(o.Key, n.prefix()), 10, 64); err == nil {
				highest = max(highest, number)
			}
		}
		after = objects[len(objects)-1].Key
	}
	known, err := n.gateway.cluster.Generation(ctx)
	if err != nil {
		return err
	}
	if highest > known {
		return refuse(connect.CodeFailedPrecondition, "TABLE_ROLLED_BACK",
			"the table was rolled back: %s is at generation %d, but the bucket %s has seen %d. "+
				"Serving would give offsets a second time. Restore the newest copy of the table", n.gateway.table, known, n.gateway.store, highest)
	}
	return nil
}

// raise makes the next generation known, in the table and then in the bucket.
func (n *generation) raise(ctx context.Context) error {
	n.recent.end()
	n.recent.begin()
	number, err := n.gateway.cluster.RaiseGeneration(ctx)
	if err != nil {
		return err
	}
	// Nobody else writes this number: should it be there, an earlier try of ours came through.
	err = n.gateway.notes.Put(ctx, n.key(number), segments.NewBody([]byte(n.gateway.ID())))
	if err != nil && !errors.Is(err, segments.ErrExists) {
		return err
	}
	if number == 1 {
		return nil
	}
	// The newest says it all; with the others a LIST would grow for ever.
	return n.gateway.notes.Delete(ctx, n.key(number-1))
}

func (n *generation) key(number uint64) string { return fmt.Sprintf("%s%020d", n.prefix(), number) }

// committed is told of each commit; once in a while it raises the generation, in
// the background.
func (n *generation) committed(ctx context.Context) {
	if n.recent.lasting() > generationPace {
		n.recent.end()
		n.recent.begin()
		go func() {
			if err := n.raise(ctx); err != nil && ctx.Err() == nil {
				n.gateway.log.Warn("generation not raised; a rolled back table would be noticed later", "error", err)
			}
		}()
	}
}
