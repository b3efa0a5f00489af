package compactor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// Defaults of [CollectConfig].
const (
	DefaultGrace    = 10 * time.Minute
	DefaultInterval = time.Hour
	DefaultMaxShare = 0.3

	defaultParallel = 16
	// fewObjects and fewBytes may always go at once, whatever their share: a small cluster is garbage for the most part
	// once its segments were merged.
	fewObjects = 100
	fewBytes   = 1 << 30
	// dutyFactor spaces collections of a large cluster: one takes at most a thirtieth of the time.
	dutyFactor = 30
	// firstWait is how long after a start nothing is collected, unless the interval is shorter.
	firstWait = 10 * time.Minute
	// reapPause follows candidates that could not be looked at once more.
	reapPause = time.Minute
	// askTime bounds the wait for a gateway's acknowledgement.
	askTime = 15 * time.Second
)

// Gateways can be asked what they know.
type Gateways interface {
	// Acknowledge returns once a gateway that was seen live or draining knows of every closing that the table had when
	// this was called, and everything is settled that it judged before it knew. An error says that it cannot be
	// asked: nothing is known then.
	Acknowledge(ctx context.Context, id metadata.GatewayID) error
}

// Beating is a Gateways that can say anew what is settled, by the row of the gateway beside which the collector runs.
type Beating interface {
	Beat(ctx context.Context) error
}

// Host is the gateway beside which a collector runs.
type Host interface {
	Gateways
	// First says whether what is to be done once in the cluster is up to this gateway.
	First() bool
	// Litter counts what may have left garbage, in the whole cluster, as far as it is known here. changed is closed when
	// there is more, or when it may be another gateway that comes first.
	Litter() (count uint64, changed <-chan struct{})
}

// NobodyLives is the Gateways of a table that no other process can reach, and on which no gateway runs.
type NobodyLives struct{}

// Acknowledge implements [Gateways].
func (NobodyLives) Acknowledge(context.Context, metadata.GatewayID) error { return nil }

// NobodyAnswers is the Gateways of a table beside which nobody can be asked.
type NobodyAnswers struct{}

// Acknowledge implements [Gateways].
func (NobodyAnswers) Acknowledge(context.Context, metadata.GatewayID) error {
	return errors.New("compactor: gateways cannot be asked from here")
}

// CollectConfig is what a collector works on. The zero value of a number means its default.
type CollectConfig struct {
	// Store and Table should try again what fails as unavailable (segments.Retry, metadata.Retry).
	Store    segments.Store
	Table    metadata.Table
	Gateways Gateways
	// Grace is for how long, on this process's own clock, a collector must have known that nothing names an object before
	// it goes (default 10 minutes; negative: none). Readers may go by an index for so long.
	Grace time.Duration
	// Interval spaces collections that nobody asked for (default 1 hour).
	Interval time.Duration
	// MaxShare is how much of the listed bytes may go at once without being forced, from 0 to 1 (default 0.3). 100
	// objects, or 1 GiB, may always go.
	MaxShare float64
	// Parallel is how many partitions, or objects, are read at once (default 16).
	Parallel int
	Log      *slog.Logger
}

func (c CollectConfig) withDefaults() CollectConfig {
	c.Grace = max(cmp.Or(c.Grace, DefaultGrace), 0)
	c.Interval = cmp.Or(c.Interval, DefaultInterval)
	c.MaxShare = cmp.Or(c.MaxShare, DefaultMaxShare)
	c.Parallel = cmp.Or(c.Parallel, defaultParallel)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate lists every fault at once.
func (c CollectConfig) Validate() error {
	var faults []error
	if c.Store == nil || c.Table == nil || c.Gateways == nil {
		faults = append(faults, errors.New("collector: a store, a table and gateways are needed"))
	}
	if c.Interval < 0 {
		faults = append(faults, fmt.Errorf("collector: interval %s is negative", c.Interval))
	}
	if c.MaxShare < 0 || c.MaxShare > 1 {
		faults = append(faults, fmt.Errorf("collector: share %v: want 0 to 1", c.MaxShare))
	}
	if c.Parallel < 0 {
		faults = append(faults, fmt.Errorf("collector: %d reads at once", c.Parallel))
	}
	return errors.Join(faults...)
}

// CollectOptions say what one collection is to do.
type CollectOptions struct {
	// DryRun deletes nothing, and counts what would go with no grace.
	DryRun bool
	// Force deletes more than the share that may go at once.
	Force bool
	// Wait waits until the grace of what was found is over, and ends when it is gone.
	Wait bool
}

// Collector finds objects and rows that nothing names and never will, and deletes them. Two at once are harmless. What it
// remembers (what was unnamed since when, which gateway knows of which closing) only makes it later when it is lost.
type Collector struct {
	config CollectConfig
	limits limits
	meters collectMeters
	began  time.Time

	turn chan struct{} // holds one while somebody collects
	// found holds one when a turn has ended since Run looked: there may be a grace to wait for, and another collection.
	found chan struct{}
	// What follows belongs to whoever has the turn.
	candidates []candidate
	rows       map[metadata.Key]unnamedRow
	departed   map[metadata.GatewayID]time.Time // closed ids of which nothing was left, since when
	heard      map[metadata.GatewayID]map[metadata.GatewayID]bool
	listed     int64 // bytes, by the last list
	after      after // the last collection
}

// candidate is a segment that nothing names and never will.
type candidate struct {
	uploader metadata.GatewayID
	number   uint64
	size     int64
	since    time.Time // it was found unnamed
	stuck    bool      // it could not go when its grace was over: the next collection tries again
}

// unnamedRow is a row that nothing names and never will.
type unnamedRow struct {
	stamp metadata.Stamp
	since time.Time
}

// NewCollector returns a collector that has not begun.
func NewCollector(config CollectConfig) (*Collector, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &Collector{config: config.withDefaults(), limits: limits{cmp.Or(config.MaxShare, DefaultMaxShare), fewObjects, fewBytes}, began: time.Now(),
		turn: make(chan struct{}, 1), found: make(chan struct{}, 1), rows: make(map[metadata.Key]unnamedRow), departed: make(map[metadata.GatewayID]time.Time),
		heard: make(map[metadata.GatewayID]map[metadata.GatewayID]bool)}, nil
}

// Collect makes a collection now. What an error leaves behind the next one finds. With Wait the report has what this collector deleted in all
// meanwhile, whoever had asked: when the grace is over it deletes by itself, too.
func (c *Collector) Collect(ctx context.Context, o CollectOptions) (*Collection, error) {
	before := c.meters.deleted()
	report, err := c.collectOnce(ctx, o, false)
	if err != nil || !o.Wait || o.DryRun || !report.waits() {
		return report, err
	}
	if err := sleep(ctx, c.config.Grace); err != nil {
		return nil, err
	}
	more, err := c.collectOnce(ctx, o, false) // what became garbage since is for the next one
	if err != nil {
		return nil, err
	}
	all := c.meters.deleted()
	more.Deleted, more.DeletedBytes = all.objects-before.objects, all.bytes-before.bytes
	more.Rows, more.Gateways = all.rows-before.rows, all.gateways-before.gateways
	return more, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take waits for the collector's turn.
func (c *Collector) take(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// leave ends a turn, and has Run look at what came of it.
func (c *Collector) leave() {
	<-c.turn
	select {
	case c.found <- struct{}{}:
	default:
	}
}

// collectOnce makes one collection. idle: nothing became garbage since the last one, and nobody asked.
func (c *Collector) collectOnce(ctx context.Context, o CollectOptions, idle bool) (*Collection, error) {
	if err := c.take(ctx); err != nil {
		return nil, err
	}
	defer c.leave()
	p := newCollecting(c, o)
	err := p.run(ctx)
	c.ended(p, err)
	if err == nil && !o.DryRun {
		c.after.note(p.report, idle)
	}
	return p.report, err
}

// after says whether another collection should follow one although nothing more became garbage.
type after struct {
	again bool
	ended time.Time
	// waits is how many intervals later: more each time when what keeps garbage does not tell of its end, mostWaits at most.
	waits time.Duration
}

// mostWaits is a day of the default interval.
const mostWaits = 24

func (a *after) note(r *Collection, idle bool) {
	waits := time.Duration(1)
	if idle && !r.blocked() {
		waits = min(2*a.waits, mostWaits)
	}
	*a = after{again: r.blocked() || r.lingers(), ended: time.Now(), waits: waits}
}

// ended counts and tells what a pass came to.
func (c *Collector) ended(p *collecting, err error) {
	r := p.report
	if err != nil {
		c.meters.failed.Add(1)
		return
	}
	if r.DryRun {
		return
	}
	c.meters.note(r)
	if r.Deleted+r.Rows+r.Gateways > 0 {
		c.config.Log.Info("garbage collected", "objects", r.Deleted, "bytes", r.DeletedBytes, "rows", r.Rows, "gateways", r.Gateways)
	}
	if n := r.Kept[KeptTooMany]; n > 0 {
		c.config.Log.Error("so much is garbage that nothing of it goes without being forced: look what is about to go (varve gc --dry-run), then varve gc --force",
			"objects", n, "listed_bytes", r.ObjectBytes, "share", c.config.MaxShare)
	}
	if r.Refusal != "" {
		c.config.Log.Error("the bucket does not delete garbage: it stays, and costs", "objects", r.Kept[KeptRefused], "error", r.Refusal)
	}
}

// Run collects beside a gateway, as long as that one comes first: when something became garbage since the last time, and once
// more when the grace of what was found is over. Nothing happens while nothing changes. It returns when ctx ends.
func (c *Collector) Run(ctx context.Context, host Host) error {
	var covered uint64 // litter that a collection has seen
	var earliest = c.began.Add(min(firstWait, c.config.Interval))
	var reapAfter time.Time
	for {
		count, changed := host.Litter()
		var due, over <-chan time.Time
		next, waits, then, free := c.next()
		if host.First() {
			switch {
			case count != covered:
				due = time.After(time.Until(earliest))
			case free && then.again:
				due = time.After(max(time.Until(earliest), time.Until(then.ended.Add(then.waits*c.config.Interval))))
			}
		}
		if waits {
			over = time.After(max(time.Until(next), time.Until(reapAfter)))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		case <-c.found: // somebody else collected, or this did
		case <-over:
			if err := c.reapWaiting(ctx); err != nil && ctx.Err() == nil {
				c.config.Log.Warn("garbage could not all be deleted; it is tried again", "error", err)
				reapAfter = time.Now().Add(min(reapPause, c.config.Interval))
			}
		case <-due:
			began := time.Now()
			_, err := c.collectOnce(ctx, CollectOptions{}, count == covered)
			if err == nil {
				covered = count
			} else if ctx.Err() == nil {
				c.config.Log.Warn("no garbage was collected; it is tried again", "error", err)
			}
			earliest = time.Now().Add(max(c.config.Interval, dutyFactor*time.Since(began)))
		}
	}
}

// next is when the grace of the oldest candidate is over, if there is one, and what should follow the last collection. Whoever has the
// turn says so when it ends.
func (c *Collector) next() (grace time.Time, waits bool, then after, free bool) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	default:
		return time.Time{}, false, after{}, false
	}
	var oldest time.Time
	for i := range c.candidates {
		if one := &c.candidates[i]; !one.stuck && (oldest.IsZero() || one.since.Before(oldest)) {
			oldest = one.since
		}
	}
	return oldest.Add(c.config.Grace), !oldest.IsZero(), c.after, true
}

// reapWaiting deletes candidates whose grace is over: each is looked at once more, but nothing is listed.
func (c *Collector) reapWaiting(ctx context.Context) error {
	if err := c.take(ctx); err != nil {
		return err
	}
	defer c.leave()
	p := newCollecting(c, CollectOptions{})
	err := p.prepare(ctx)
	if err == nil {
		err = p.reap(ctx)
	}
	if err == nil {
		err = p.sweepStrays(ctx) // the last look finds them, and no later one may
	}
	c.ended(p, err)
	return err
}
