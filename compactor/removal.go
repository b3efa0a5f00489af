package compactor

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/metadata"
)

// RemovalConfig has the paces of removals; zero values are the defaults.
type RemovalConfig struct {
	// Delay is how long a removed topic's rows stay, so that all who read it hear of its end from those who
	// sequence it, and how long a deletion that was seen under way is left to whoever was asked for it (default 1 min).
	// Retry is the time between two tries while something is left (default 1 min).
	Delay, Retry time.Duration
	// Reload is how long it takes at most until it is looked for removed topics, should nobody have told (default 1 h).
	Reload time.Duration
	Log    *slog.Logger
}

func (c RemovalConfig) withDefaults() RemovalConfig {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&c.Delay, time.Minute}, {&c.Retry, time.Minute}, {&c.Reload, time.Hour}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// RemovalLog is the log as removals need it.
type RemovalLog interface {
	// Mine says whether a partition is this gateway's to look after, as things are now.
	Mine(id metadata.PartitionID) bool
	// Delete goes on with the deletion of a topic that is marked: it closes the partitions that are open and frees the name. Two
	// at once do no harm.
	Delete(ctx context.Context, topic *metadata.Topic) error
}

// RemovalTopics is the catalog as removals need it.
type RemovalTopics interface {
	List(ctx context.Context, prefix, after string, limit int) ([]*metadata.Topic, error)
}

// deleteLimit is how long one try waits for a deletion: what it closed stays closed, and others should not wait for it long.
const deleteLimit = 15 * time.Second

// Removal goes on with deletions that were cut short, and removes the rows of topics that were deleted, but for the one that says
// so. A topic is removed by the gateway that its first partition is; that two believe to be that does no harm.
type Removal struct {
	config RemovalConfig
	table  metadata.Table
	log    RemovalLog
	topics RemovalTopics
	wake   chan struct{}
	stale  atomic.Bool
	found  map[metadata.TopicID]*removal
}

// removal is a topic that is being removed.
type removal struct {
	// marked is set while the topic is marked for deletion: the row about the deletion may be missing.
	marked *metadata.Topic
	metadata.RemovedTopic
	at    time.Time // when something can be done; zero: when who lives changes
	tries int       // that left something
}

// NewRemoval makes the actor; Run runs it.
func NewRemoval(config RemovalConfig, table metadata.Table, log RemovalLog, topics RemovalTopics) *Removal {
	r := &Removal{config: config.withDefaults(), table: table, log: log, topics: topics, wake: make(chan struct{}, 1), found: make(map[metadata.TopicID]*removal)}
	r.stale.Store(true)
	return r
}

// Changed says that topics were removed, or that gateways came or went. It does not block.
func (r *Removal) Changed() {
	r.stale.Store(true)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run removes until ctx ends.
func (r *Removal) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if r.stale.Swap(false) {
			if err := r.reload(ctx); err != nil {
				r.config.Log.Warn("it cannot be read which topics are to be removed: they stay meanwhile", "error", err)
				r.stale.Store(true)
				waitFor(ctx, r.config.Retry)
				continue
			}
		}
		timer := time.NewTimer(r.pass(ctx))
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
	return context.Cause(ctx)
}

// reload reads which topics there are to remove.
func (r *Removal) reload(ctx context.Context) error {
	marked, err := r.marked(ctx) // before the rows about deletions: one that ends meanwhile is found in one of both
	if err != nil {
		return err
	}
	all, err := metadata.ListRemoved(ctx, r.table)
	if err != nil {
		return err
	}
	was := r.found
	r.found = make(map[metadata.TopicID]*removal, len(marked)+len(all))
	for _, t := range marked {
		next := &removal{marked: t, RemovedTopic: metadata.RemovedTopic{ID: t.ID, Name: t.Name, Partitions: t.Partitions}, at: time.Now().Add(r.config.Delay)}
		if old := was[t.ID]; old != nil && old.marked != nil {
			next.at, next.tries = old.at, old.tries
		}
		r.found[t.ID] = next
	}
	for _, t := range all {
		if t.Done || r.found[t.ID] != nil || !r.log.Mine(metadata.PartitionID{Topic: t.ID}) {
			continue
		}
		next := &removal{RemovedTopic: t, at: time.Now()}
		switch old := was[t.ID]; {
		case t.Swept: // who lives may have changed
		case old != nil && old.marked == nil:
			next.at, next.tries = old.at, old.tries
		default:
			next.at = next.at.Add(r.config.Delay)
		}
		r.found[t.ID] = next
	}
	return nil
}

// marked lists the topics of this gateway that are marked for deletion. Whoever was asked for it may be at it yet, or have died.
func (r *Removal) marked(ctx context.Context) ([]*metadata.Topic, error) {
	all, err := r.topics.List(ctx, "", "", 0)
	return slices.DeleteFunc(all, func(t *metadata.Topic) bool {
		return t.State != metadata.TopicDeleting || !r.log.Mine(metadata.PartitionID{Topic: t.ID})
	}), err
}

// pass does what can be done, and returns how long it takes until there is more.
func (r *Removal) pass(ctx context.Context) time.Duration {
	wait := r.config.Reload
	for id, t := range r.found {
		if t.at.IsZero() {
			continue
		}
		if left := time.Until(t.at); left > 0 {
			wait = min(wait, left)
			continue
		}
		gone, err := r.remove(ctx, t)
		switch {
		case ctx.Err() != nil:
			return math.MaxInt64
		case gone:
			delete(r.found, id)
		case errors.Is(err, metadata.ErrConflict): // another gateway is at it
			r.again(t)
			r.stale.Store(true)
			wait = min(wait, r.config.Retry)
		case err != nil:
			r.config.Log.Warn("a topic could not be removed altogether; it is tried again", "topic", t.Name, "id", t.ID.String(), "error", err)
			wait = min(wait, r.again(t))
		default:
			if !t.at.IsZero() {
				wait = min(wait, max(time.Until(t.at), 0))
			}
		}
	}
	if wait == r.config.Reload {
		r.stale.Store(true) // by then
	}
	return wait
}

// again has a topic looked at again in a while, later each time.
func (r *Removal) again(t *removal) time.Duration {
	wait := min(r.config.Retry<<min(t.tries, 20), r.config.Reload)
	t.at = time.Now().Add(wait)
	t.tries++
	return wait
}

// remove takes the next step with a topic. gone: nothing more is to be done, or the row about the deletion is there, which is read anew.
func (r *Removal) remove(ctx context.Context, t *removal) (gone bool, err error) {
	if t.marked != nil {
		limited, cancel := context.WithTimeout(ctx, deleteLimit)
		defer cancel()
		if err := r.log.Delete(limited, t.marked); err != nil {
			return false, err
		}
		r.config.Log.Info("a deletion that was cut short is done", "topic", t.Name, "id", t.ID.String(), "partitions", t.Partitions)
		r.Changed()
		return true, nil
	}
	if t.Swept {
		waiting, err := t.Waiting(ctx, r.table)
		if err != nil || len(waiting) > 0 {
			if err == nil {
				t.at = time.Time{}
			}
			return false, err
		}
	}
	// When nobody knows of the topic any more, what late writers have left goes too.
	left, err := r.sweep(ctx, t, t.Swept)
	if err != nil {
		return false, err
	}
	if left > 0 {
		r.config.Log.Debug("a removed topic still has rows", "topic", t.Name, "id", t.ID.String(), "partitions", left)
		r.again(t)
		return false, nil
	}
	if t.Swept {
		return true, t.Finish(ctx, r.table)
	}
	if err := t.MarkSwept(ctx, r.table); err != nil {
		return false, err
	}
	r.config.Log.Info("the rows of a removed topic are gone", "topic", t.Name, "id", t.ID.String(), "partitions", t.Partitions)
	t.at = time.Time{}
	return false, nil
}

// sweep removes rows, and returns of how many partitions some are left.
func (r *Removal) sweep(ctx context.Context, t *removal, final bool) (left int64, err error) {
	var count atomic.Int64
	group, limited := errgroup.WithContext(ctx)
	group.SetLimit(looksAtOnce)
	for n := range t.Partitions {
		if limited.Err() != nil {
			break
		}
		group.Go(func() error {
			there, err := t.SweepPartition(limited, r.table, n, final)
			if there {
				count.Add(1)
			}
			return err
		})
	}
	err = group.Wait()
	return count.Load(), errors.Join(err, context.Cause(ctx))
}
