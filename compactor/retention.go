package compactor

import (
	"container/heap"
	"context"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/metadata"
)

// RetentionLog is the log as retention needs it: the partitions as a gateway knows them.
type RetentionLog interface {
	// Mine says whether a partition is this gateway's to look after, as things are now.
	Mine(id metadata.PartitionID) bool
	// Expired says what of a partition goes, by its newest view, which it returns too.
	Expired(ctx context.Context, id metadata.PartitionID, r metadata.Retention, now int64) (*metadata.View, metadata.Expired, error)
	// Trim moves the log start up to offset, if it is below, because of a topic's settings. metadata.ErrClosed: the partition is gone;
	// metadata.ErrConflict: there is a newer version of the topic, and nothing was moved.
	Trim(ctx context.Context, topic *metadata.Topic, id metadata.PartitionID, offset int64) error
	// Clock is the time by which records are too old.
	Clock() time.Time
}

// RetentionTopics is the catalog as retention needs it.
type RetentionTopics interface {
	List(ctx context.Context, prefix, after string, limit int) ([]*metadata.Topic, error)
	Refresh(ctx context.Context, name string) (*metadata.Topic, error)
}

// RetentionConfig has limits and paces; zero values are the defaults.
type RetentionConfig struct {
	// Pace is the longest time between two trims of a partition (default 5 min): a hundredth of retention.ms, but a second
	// at least. SizePace is that between two trims by size (default 10 s).
	Pace, SizePace time.Duration
	// Spread is the space between the first looks at partitions after a start, a change of who lives, or another
	// retention (default 2 ms).
	Spread time.Duration
	// Reload is how long it takes at most until topics are read again, should nobody have told of a change (default 1 h).
	Reload time.Duration
	Log    *slog.Logger
}

const (
	// leastPace is the shortest time between two trims of a partition by time.
	leastPace = time.Second
	// recheck is how long the clock is trusted to go on as it goes, when something expires later than that.
	recheck = 10 * time.Minute
	// looksAtOnce is how many partitions are looked at, or trimmed, at a time.
	looksAtOnce = 16
	// lookLimit bounds a look and a trim, in all.
	lookLimit = 30 * time.Second
	// longestPause follows looks that fail time and again.
	longestPause = time.Minute
)

func (c RetentionConfig) withDefaults() RetentionConfig {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&c.Pace, 5 * time.Minute}, {&c.SizePace, 10 * time.Second}, {&c.Spread, 2 * time.Millisecond}, {&c.Reload, time.Hour}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Retention moves log starts up as topics' retention says. It sleeps until the first chunk of a partition is too old, or a
// commit makes one too large: partitions that are idle are not asked for again, topics without retention cost nothing.
type Retention struct {
	config RetentionConfig
	log    RetentionLog
	topics RetentionTopics
	wake   chan struct{}

	mu      sync.Mutex
	watched map[metadata.TopicID]*watched
	parts   map[metadata.PartitionID]*kept
	due     dueHeap
	stale   bool // topics, or who lives, have changed
}

// watched is a topic with a retention.
type watched struct {
	topic  *metadata.Topic
	policy metadata.Retention
	mine   []bool // partitions, as of the last reading
}

// kept is what is known of a partition from which something will go.
type kept struct {
	id metadata.PartitionID
	at time.Time // when it is looked at, on the monotonic clock
	// nextAt is the wall clock (ms) at which something expires; full the View.Bytes from which on something goes by size.
	nextAt, full int64
	after        time.Time // it is not looked at before
	now          bool      // it is to be looked at whatever the clock says
	// end and bytes are those of the newest view that was committed here.
	end, bytes int64
	failures   int
	place      int // in the heap; -1: not in it
}

// NewRetention makes the actor; Run runs it.
func NewRetention(config RetentionConfig, log RetentionLog, topics RetentionTopics) *Retention {
	return &Retention{config: config.withDefaults(), log: log, topics: topics, wake: make(chan struct{}, 1),
		watched: make(map[metadata.TopicID]*watched), parts: make(map[metadata.PartitionID]*kept), stale: true}
}

// Changed says that topics were made, changed or removed, or that gateways came or went. It does not block.
func (r *Retention) Changed() {
	r.mu.Lock()
	r.stale = true
	r.mu.Unlock()
	r.poke()
}

// Committed takes note of a view of a partition that this gateway sequences. It does not block.
func (r *Retention) Committed(v *metadata.View) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watched[v.Partition.Topic] == nil {
		return
	}
	k := r.parts[v.Partition]
	switch {
	case v.Closed:
		r.forget(v.Partition)
		return
	case k == nil && v.Next == v.Start:
		return
	case k == nil:
		k = r.keep(v.Partition)
		k.full = 0
	}
	k.end, k.bytes = v.Next, v.Bytes
	if k.now || k.bytes < k.full {
		return
	}
	k.now = true
	r.schedule(k, time.Now())
}

// Run looks after partitions until ctx ends.
func (r *Retention) Run(ctx context.Context) error {
	reload := time.NewTimer(r.config.Reload)
	defer reload.Stop()
	pause := leastPace
	for ctx.Err() == nil {
		if err := r.reload(ctx); err != nil {
			r.config.Log.Warn("topics cannot be read: their retention is not applied meanwhile", "error", err)
			if !waitFor(ctx, pause) {
				break
			}
			pause = min(2*pause, longestPause)
			continue
		}
		pause = leastPace
		if batch := r.take(); len(batch) > 0 {
			r.look(ctx, batch)
			continue
		}
		next, stop := r.next()
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-next:
		case <-reload.C:
			reload.Reset(r.config.Reload)
			r.Changed()
		}
		stop()
	}
	return context.Cause(ctx)
}

func (r *Retention) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// waitFor says whether ctx lasted.
func waitFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// next fires when the first partition is to be looked at.
func (r *Retention) next() (<-chan time.Time, func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stale {
		r.poke()
	}
	if len(r.due) == 0 {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(r.due[0].at))
	return timer.C, func() { timer.Stop() }
}

// reload reads the topics, if something about them, or about who lives, has changed.
func (r *Retention) reload(ctx context.Context) error {
	r.mu.Lock()
	stale := r.stale
	r.stale = false
	r.mu.Unlock()
	if !stale {
		return nil
	}
	all, err := r.topics.List(ctx, "", "", 0)
	if err != nil {
		r.mu.Lock()
		r.stale = true
		r.mu.Unlock()
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.watched
	r.watched = make(map[metadata.TopicID]*watched, len(was))
	var fresh []*kept
	for _, t := range all {
		policy := t.Config.Retention()
		if t.State != metadata.TopicActive || policy.Forever() {
			continue
		}
		w := &watched{topic: t, policy: policy}
		fresh = append(fresh, r.divide(w, was[t.ID])...)
		r.watched[t.ID] = w
	}
	for id := range r.parts {
		if w := r.watched[id.Topic]; w == nil || !w.mine[id.Number] {
			r.forget(id)
		}
	}
	now := time.Now()
	for _, k := range fresh {
		k.now, k.after = true, time.Time{}
		r.schedule(k, now.Add(rand.N(time.Duration(len(fresh))*r.config.Spread+1)))
	}
	return nil
}

// divide notes which partitions are this gateway's, and returns those that must be looked at. The caller holds mu.
func (r *Retention) divide(w, was *watched) []*kept {
	var fresh []*kept
	w.mine = make([]bool, w.topic.Partitions)
	for n := range w.topic.Partitions {
		id := metadata.PartitionID{Topic: w.topic.ID, Number: n}
		w.mine[n] = r.log.Mine(id)
		known := was != nil && was.policy == w.policy && int(n) < len(was.mine) && was.mine[n]
		if w.mine[n] && !known {
			fresh = append(fresh, r.keep(id))
		}
	}
	return fresh
}

// keep returns what is known of a partition. The caller holds mu.
func (r *Retention) keep(id metadata.PartitionID) *kept {
	k := r.parts[id]
	if k == nil {
		k = &kept{id: id, nextAt: math.MaxInt64, full: math.MaxInt64, place: -1}
		r.parts[id] = k
	}
	return k
}

// forget drops what is known of a partition. The caller holds mu.
func (r *Retention) forget(id metadata.PartitionID) {
	k := r.parts[id]
	if k == nil {
		return
	}
	delete(r.parts, id)
	if k.place >= 0 {
		heap.Remove(&r.due, k.place)
	}
}

// schedule has a partition looked at, but not before it may be. The caller holds mu.
func (r *Retention) schedule(k *kept, at time.Time) {
	if at.Before(k.after) {
		at = k.after
	}
	k.at = at
	if k.place < 0 {
		heap.Push(&r.due, k)
	} else {
		heap.Fix(&r.due, k.place)
	}
	if k.place == 0 {
		r.poke()
	}
}

// inspection is one look at a partition.
type inspection struct {
	*kept
	topic   *metadata.Topic
	policy  metadata.Retention
	view    *metadata.View
	expired metadata.Expired
	trimmed bool
	err     error
}

// take returns partitions that are due.
func (r *Retention) take() []*inspection {
	r.mu.Lock()
	defer r.mu.Unlock()
	var batch []*inspection
	for now := time.Now(); len(r.due) > 0 && !r.due[0].at.After(now) && len(batch) < 4*looksAtOnce; {
		k := heap.Pop(&r.due).(*kept)
		w := r.watched[k.id.Topic]
		switch clock := r.log.Clock().UnixMilli(); {
		case w == nil:
			delete(r.parts, k.id)
		case !r.log.Mine(k.id): // whoever has it now looks after it
			delete(r.parts, k.id)
			w.mine[k.id.Number] = false
		case k.full == 0 && !k.now: // nothing was committed since it was emptied
			delete(r.parts, k.id)
		case !k.now && clock < k.nextAt:
			r.schedule(k, now.Add(r.until(k.nextAt, clock)))
		default:
			batch = append(batch, &inspection{kept: k, topic: w.topic, policy: w.policy})
		}
	}
	return batch
}

// until is how long it takes until something expires, as far as the clock is trusted.
func (r *Retention) until(nextAt, clock int64) time.Duration {
	if nextAt-clock >= recheck.Milliseconds() {
		return recheck
	}
	return time.Duration(max(nextAt-clock, 1)) * time.Millisecond
}

// look looks at partitions, and trims them where something has expired.
func (r *Retention) look(ctx context.Context, batch []*inspection) {
	limited, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	each(batch, func(l *inspection) {
		r.mu.Lock()
		l.now = false // what is committed from here on counts anew
		r.mu.Unlock()
		l.view, l.expired, l.err = r.log.Expired(limited, l.id, l.policy, r.log.Clock().UnixMilli())
	})
	r.confirm(limited, batch)
	each(batch, func(l *inspection) {
		if l.err != nil || l.expired.To <= l.expired.From {
			return
		}
		if l.err = r.log.Trim(limited, l.topic, l.id, l.expired.To); l.err != nil {
			if errors.Is(l.err, metadata.ErrConflict) {
				l.err = errOtherPolicy
			}
			return
		}
		l.trimmed = true
		r.config.Log.Debug("records have reached the end of their retention", "topic", l.topic.Name, "partition", l.id.Number,
			"offsets", l.expired.To-l.expired.From, "bytes", l.expired.Bytes, "start", l.expired.To)
		l.view, l.expired, l.err = r.log.Expired(limited, l.id, l.policy, r.log.Clock().UnixMilli())
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range batch {
		r.conclude(ctx, l)
	}
}

// each calls f for all looks, several at once.
func each(batch []*inspection, f func(*inspection)) {
	var group errgroup.Group
	group.SetLimit(looksAtOnce)
	for _, l := range batch {
		group.Go(func() error {
			f(l)
			return nil
		})
	}
	group.Wait() // no errors
}

// errOtherPolicy ends a look: the topic's retention is another one by now.
var errOtherPolicy = errors.New("compactor: the retention has changed")

// confirm reads the topics of what is to be trimmed once more, so that nothing goes by a retention that
// was changed before. One read for each topic.
func (r *Retention) confirm(ctx context.Context, batch []*inspection) {
	verdicts := make(map[metadata.TopicID]error)
	for _, l := range batch {
		if l.err != nil || l.expired.To <= l.expired.From {
			continue
		}
		verdict, known := verdicts[l.topic.ID]
		if !known {
			t, err := r.topics.Refresh(ctx, l.topic.Name)
			switch {
			case errors.Is(err, metadata.ErrTopicNotFound):
				err = errOtherPolicy
			case err == nil && (t.ID != l.topic.ID || t.State != metadata.TopicActive || t.Config.Retention() != l.policy):
				err = errOtherPolicy
			}
			verdict = err
			verdicts[l.topic.ID] = err
		}
		l.err = verdict
	}
}

// conclude says when a partition is looked at next. The caller holds mu.
func (r *Retention) conclude(ctx context.Context, l *inspection) {
	k, now := l.kept, time.Now()
	if r.parts[k.id] != k {
		return // forgotten meanwhile
	}
	switch {
	case errors.Is(l.err, metadata.ErrClosed):
		delete(r.parts, k.id)
		return
	case errors.Is(l.err, errOtherPolicy):
		r.stale, k.now = true, true
		r.schedule(k, now.Add(leastPace))
		r.poke()
		return
	case l.err != nil:
		if ctx.Err() != nil {
			return
		}
		r.config.Log.Warn("retention could not be applied; it is tried again", "topic", l.topic.Name, "partition", k.id.Number, "error", l.err)
		k.failures++
		k.now = true
		r.schedule(k, now.Add(min(leastPace<<min(k.failures, 10), longestPause)))
		return
	}
	k.failures = 0
	if l.trimmed {
		k.after = now.Add(r.pace(l.policy))
	}
	k.nextAt, k.full = l.expired.NextAt, math.MaxInt64
	if l.expired.Room < math.MaxInt64-l.view.Bytes {
		k.full = l.view.Bytes + l.expired.Room
	}
	if l.view.Start == l.view.Next {
		k.full = 0 // any commit is one too many
	}
	k.now = k.now || k.end > l.view.Next && k.bytes >= k.full // it came while this was looked at
	switch {
	case l.view.Closed:
		r.forget(k.id)
	case k.full == 0 && !k.now:
		r.schedule(k, now) // when it may be looked at next, to be forgotten then
	case l.expired.To > l.expired.From || k.now: // something has expired, or was committed, meanwhile
		k.now = true
		r.schedule(k, now)
	case k.nextAt != math.MaxInt64:
		r.schedule(k, now.Add(r.until(k.nextAt, r.log.Clock().UnixMilli())))
	}
}

// pace is how long a partition is left alone after a trim.
func (r *Retention) pace(p metadata.Retention) time.Duration {
	pace := r.config.Pace
	if p.Millis >= 0 && p.Millis/100 < pace.Milliseconds() {
		pace = max(time.Duration(p.Millis/100)*time.Millisecond, min(leastPace, pace))
	}
	if p.Bytes >= 0 {
		pace = min(pace, r.config.SizePace)
	}
	return pace
}

// Watched lists the partitions that something will go from, for tests and the curious.
func (r *Retention) Watched() []metadata.PartitionID {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]metadata.PartitionID, 0, len(r.parts))
	for id := range r.parts {
		list = append(list, id)
	}
	slices.SortFunc(list, func(a, b metadata.PartitionID) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
	return list
}

// dueHeap has the partitions by when they are looked at.
type dueHeap []*kept

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push and Pop are for package heap.
func (h *dueHeap) Push(x any) {
	k := x.(*kept)
	k.place = len(*h)
	*h = append(*h, k)
}

// Pop takes the last one.
func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	k := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	k.place = -1
	return k
}
