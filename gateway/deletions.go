package gateway

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/varvelog/varve/metadata"
)

// closesAtOnce is how many partitions of a topic are closed at a time. Those whose sequencer is the same wait for
// the same commit, which may be an eighth of a second away: closing few at once takes as many of them.
const closesAtOnce = 2048

// deletions are those of topics that are marked. Each goes on, whoever leaves, until it is done or fails, or the gateway ends; then
// the mark stays, and who deletes the topic again begins a new one, or who removes topics does ([Upkeep.Delete]).
type deletions struct {
	g *Gateway

	mu   sync.Mutex
	list map[metadata.TopicID]*deletion
}

// deletion is one of them.
type deletion struct {
	topic  *metadata.Topic
	closed atomic.Int64  // partitions
	done   chan struct{} // closed when err is set
	err    error
}

func newDeletions(g *Gateway) *deletions {
	return &deletions{g: g, list: make(map[metadata.TopicID]*deletion)}
}

// join begins the deletion of a topic, or finds the one that is under way.
func (ds *deletions) join(t *metadata.Topic) *deletion {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d := ds.list[t.ID]
	if d == nil {
		d = &deletion{topic: t, done: make(chan struct{})}
		ds.list[t.ID] = d
		go ds.run(d)
	}
	return d
}

func (ds *deletions) run(d *deletion) {
	life, cancel := context.WithTimeout(ds.g.mirrors.lifetime(), maxCall)
	defer cancel()
	if d.err = ds.delete(life, d); d.err == nil {
		ds.g.upkeep.changed()
	}
	ds.mu.Lock()
	delete(ds.list, d.topic.ID)
	ds.mu.Unlock()
	close(d.done)
}

// delete closes each partition and frees the topic's name.
func (ds *deletions) delete(ctx context.Context, d *deletion) error {
	t, g := d.topic, ds.g
	err := (&topicService{g}).each(ctx, t, allPartitions(t), closesAtOnce, func(ctx context.Context, id metadata.PartitionID) error {
		_, err := g.router.decide(ctx, id, decision{close: true})
		if err == nil {
			d.closed.Add(1)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("topic %q is marked for deletion, but not all of its partitions are closed; the gateways go on with it soon, or delete it again: %w", t.Name, err)
	}
	if err := metadata.NoteRemoved(ctx, g.table, t); err != nil {
		return fmt.Errorf("topic %q is closed, but its name is not free yet; the gateways go on with it soon, or delete it again: %w", t.Name, err)
	}
	if err := g.topics.Remove(ctx, t); err != nil {
		return fmt.Errorf("topic %q is closed, but its name is not free yet; the gateways go on with it soon, or delete it again: %w", t.Name, err)
	}
	// Its segments count as named until here: a collection since its partitions were closed may have missed them.
	g.litter.note(1)
	return nil
}

// wait returns when the deletion has ended. A moment before the caller's time runs out it says how far it is: the caller
// would not know otherwise that it goes on.
func (d *deletion) wait(ctx context.Context) error {
	var soon <-chan time.Time
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		timer := time.NewTimer(left - min(left/10, time.Second))
		defer timer.Stop()
		soon = timer.C
	}
	select {
	case <-d.done:
		return d.err
	case <-soon:
		return refuse(connect.CodeDeadlineExceeded, reasonDeleting,
			"topic %q is marked for deletion, and %d of its %d partitions are closed so far; this gateway goes on by itself. Delete it again to wait for it",
			d.topic.Name, d.closed.Load(), d.topic.Partitions).withTopic(d.topic.Name)
	case <-ctx.Done():
		return ctx.Err()
	}
}
