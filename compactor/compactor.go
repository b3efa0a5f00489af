package compactor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// MaxTargetBytes is the largest merged segment: stores take that much in one PUT.
const MaxTargetBytes = 64 << 20

// Config is what a compactor may be told. The zero value of a field means its default.
type Config struct {
	// TargetBytes is the size of merged segments (default 64 MiB, which is the most).
	TargetBytes int64
	// Age is after how long small runs are merged although they fill no segment (default 1 h).
	Age time.Duration
	// AgainAfter is after how long what was merged short may be merged once more (default 24 h).
	AgainAfter time.Duration
	// BytesPerSecond bounds what is read and written (default 64 MiB; negative: no limit).
	BytesPerSecond int64
	// MaxEntries bounds the index entries in memory (default 100,000).
	MaxEntries int
	// KeyMapBytes is how much memory key compaction may take for the keys of a partition (default 32 MiB, some 10⁶
	// keys); one with more is read more than once.
	KeyMapBytes int64
	// KeyTailBytes are the newest bytes of a partition, which key compaction leaves alone, and the least new ones that it
	// begins for (default 1 MiB; negative: none but the last record). A pass that was asked for leaves the last record alone.
	KeyTailBytes int64
	// LooksPerSecond is how many partitions that nobody noted are looked at after a start, once (default 100; negative: none).
	LooksPerSecond int
}

func (c Config) withDefaults() Config {
	if c.TargetBytes == 0 {
		c.TargetBytes = MaxTargetBytes
	}
	if c.Age == 0 {
		c.Age = time.Hour
	}
	if c.AgainAfter == 0 {
		c.AgainAfter = max(24*time.Hour, 2*c.Age)
	}
	if c.BytesPerSecond == 0 {
		c.BytesPerSecond = 64 << 20
	}
	if c.MaxEntries == 0 {
		c.MaxEntries = 100_000
	}
	if c.KeyMapBytes == 0 {
		c.KeyMapBytes = 32 << 20
	}
	if c.KeyTailBytes == 0 {
		c.KeyTailBytes = 1 << 20
	}
	if c.LooksPerSecond == 0 {
		c.LooksPerSecond = 100
	}
	return c
}

// Validate lists every fault at once.
func (c Config) Validate() error {
	c = c.withDefaults()
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(c.TargetBytes >= 64<<10 && c.TargetBytes <= MaxTargetBytes, "merged segments of %d bytes: want 64 KiB to 64 MiB", c.TargetBytes)
	check(c.Age >= time.Second, "small segments are merged after %s: want at least 1s", c.Age)
	check(c.AgainAfter >= c.Age, "merged again after %s, which is before they are merged at all (%s)", c.AgainAfter, c.Age)
	check(c.KeyMapBytes >= 64<<10, "%d bytes for the keys of a partition: want at least 64 KiB", c.KeyMapBytes)
	check(c.MaxEntries >= 1000, "%d index entries in memory: want at least 1,000", c.MaxEntries)
	return errors.Join(faults...)
}

// Cluster is what a compactor needs of the gateway that it belongs to. All methods may be called at once.
type Cluster interface {
	// ClusterID names the cluster.
	ClusterID() string
	// ID is the gateway's id now: it is another one after the gateway was taken for dead.
	ID() metadata.GatewayID
	// Merges says whether a partition is this gateway's to merge, of all that merge.
	Merges(metadata.PartitionID) bool
	// Topics lists the topics that are not being deleted.
	Topics(context.Context) ([]*metadata.Topic, error)
	// Topic reads one from the table, as it is now. metadata.ErrTopicNotFound.
	Topic(ctx context.Context, name string) (*metadata.Topic, error)
	// Clock is the time by which records are too young, and tombstones have had their time.
	Clock() time.Time
	// View is what readers may see of a partition, now or shortly before.
	View(context.Context, metadata.PartitionID) (*metadata.View, error)
	// Swap asks whoever sequences the partition, until the answer is definite or ctx ends. metadata.ErrClosed, definite too: the partition, or
	// this uploader, is closed.
	Swap(context.Context, *metadata.Swap) (metadata.SwapOutcome, error)
	// SetMergeFloor publishes, in good time, that each number below floor that [metadata.MergerID] of the gateway used is settled.
	SetMergeFloor(gateway metadata.GatewayID, floor uint64)
}

// Dependencies are what a compactor works on.
type Dependencies struct {
	// Store and Table should try again what fails as unavailable.
	Store   segments.Store
	Table   metadata.Table
	Cluster Cluster
	Log     *slog.Logger
	// Pressed says that producers beside it wait with much in flight: merging stands back for a while then. nil: never.
	Pressed func() bool
	// Meters registers metrics; nil: none.
	Meters prometheus.Registerer
}

// Compactor merges small segments. New makes it without starting anything; Run owns everything that runs.
type Compactor struct {
	config  Config
	store   segments.Store
	table   metadata.Table
	index   metadata.Index
	cluster Cluster
	log     *slog.Logger
	meters  *meters
	pace    *pacer

	mu    sync.Mutex
	noted map[metadata.PartitionID]note
	wake  chan struct{}

	requests chan *request
	ended    chan struct{} // closed when Run is

	// Run's own:
	tracked map[metadata.PartitionID]*tracked
	numbers numbers
	damaged map[spot]string // entries that are set aside, and why
	topics  map[metadata.TopicID]*metadata.Topic
	listed  time.Time // when they were
	look    *look
	began   time.Time
}

// note is what was committed since it was last looked at.
type note struct {
	next, bytes int64
}

// tracked is a partition that has, or may have, something to merge.
type tracked struct {
	ages
	bytes    int64     // committed since it was last looked at
	due      time.Time // when to look again; zero: when there is more
	failures int       // of the last passes, one after the other
}

// spot names an index entry's bytes.
type spot struct {
	partition metadata.PartitionID
	gateway   metadata.GatewayID
	number    uint64
	position  int64
}

func spotOf(id metadata.PartitionID, e *metadata.Entry) spot {
	return spot{id, e.Gateway, e.Number, e.Position}
}

// New returns a compactor that is not running yet.
func New(config Config, d Dependencies) (*Compactor, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	c := &Compactor{config: config, store: d.Store, table: d.Table, index: metadata.TableIndex{Table: d.Table}, cluster: d.Cluster, log: d.Log,
		pace:  &pacer{perSecond: config.BytesPerSecond, pressed: d.Pressed},
		noted: make(map[metadata.PartitionID]note), wake: make(chan struct{}, 1), requests: make(chan *request), ended: make(chan struct{}),
		tracked: make(map[metadata.PartitionID]*tracked), damaged: make(map[spot]string)}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.meters = newMeters(d.Meters)
	c.numbers.cluster = d.Cluster
	return c, nil
}

// Note tells that a partition's log ends at next now, after bytes of batches more were committed. It does not block.
func (c *Compactor) Note(id metadata.PartitionID, next, bytes int64) {
	c.meters.noted.Add(uint64(bytes))
	c.mu.Lock()
	n := c.noted[id]
	c.noted[id] = note{max(n.next, next), n.bytes + bytes}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// retryAfter is when a partition is looked at again that could not be merged.
const retryAfter = time.Minute

// Run merges until ctx ends; then it returns nil. What is under way then is given up: it is garbage at most.
func (c *Compactor) Run(ctx context.Context) error {
	defer close(c.ended)
	c.began = time.Now()
	if c.config.LooksPerSecond > 0 {
		c.look = &look{due: c.began.Add(c.config.Age)}
	}
	for ctx.Err() == nil {
		select {
		case r := <-c.requests: // however much there is to do
			c.serve(ctx, r)
		default:
		}
		now := time.Now()
		c.absorb(now)
		if ready := c.ready(now); len(ready) > 0 {
			c.pass(ctx, &pass{partitions: ready})
			continue
		}
		if due := c.numbers.due; !due.IsZero() && !due.After(now) {
			c.numbers.clear(ctx)
			continue
		}
		if c.look != nil && !c.look.due.After(now) {
			c.lookOn(ctx)
			continue
		}
		c.await(ctx)
	}
	return nil
}

// await waits until something happens or is due. Without anything to merge no timer runs.
func (c *Compactor) await(ctx context.Context) {
	var timer <-chan time.Time
	if due := c.nextDue(); !due.IsZero() {
		timer = time.After(time.Until(due))
	}
	select {
	case <-ctx.Done():
	case <-c.wake:
	case <-timer:
	case r := <-c.requests:
		c.serve(ctx, r)
	}
}

func (c *Compactor) nextDue() time.Time {
	var next time.Time
	if c.look != nil {
		next = c.look.due
	}
	if due := c.numbers.due; !due.IsZero() && (next.IsZero() || due.Before(next)) {
		next = due
	}
	for _, t := range c.tracked {
		if !t.due.IsZero() && (next.IsZero() || t.due.Before(next)) {
			next = t.due
		}
	}
	return next
}

// absorb takes what was noted.
func (c *Compactor) absorb(now time.Time) {
	c.mu.Lock()
	noted := c.noted
	c.noted = make(map[metadata.PartitionID]note)
	c.mu.Unlock()
	for id, n := range noted {
		t := c.track(id)
		t.bytes += n.bytes
		t.ages.note(n.next, now, c.config.Age/8)
		if t.due.IsZero() {
			t.due = c.align(now.Add(c.config.Age))
		}
	}
}

func (c *Compactor) track(id metadata.PartitionID) *tracked {
	t := c.tracked[id]
	if t == nil {
		t = &tracked{}
		c.tracked[id] = t
	}
	return t
}

// align puts off a moment so that partitions that are due one after the other are looked at together: their records
// share segments then.
func (c *Compactor) align(t time.Time) time.Time {
	grain := c.config.Age / 4
	return c.began.Add((t.Sub(c.began) + grain - 1) / grain * grain)
}

// ready lists partitions that are due, or that had a segment's worth committed.
func (c *Compactor) ready(now time.Time) []metadata.PartitionID {
	var list []metadata.PartitionID
	for id, t := range c.tracked {
		if t.bytes >= c.config.TargetBytes || !t.due.IsZero() && !t.due.After(now) {
			list = append(list, id)
		}
	}
	return list
}

// look is the one look at partitions that nobody noted since the start.
type look struct {
	due       time.Time
	topics    []*metadata.Topic
	listed    bool
	partition int32
}

// lookOn looks at a second's worth of them.
func (c *Compactor) lookOn(ctx context.Context) {
	l := c.look
	l.due = time.Now().Add(time.Second)
	if !l.listed {
		topics, err := c.cluster.Topics(ctx)
		if err != nil {
			l.due = time.Now().Add(retryAfter)
			return
		}
		l.topics, l.listed = topics, true
	}
	for looks := 0; looks < c.config.LooksPerSecond; {
		if len(l.topics) == 0 {
			c.look = nil
			return
		}
		t := l.topics[0]
		if l.partition >= t.Partitions {
			l.topics, l.partition = l.topics[1:], 0
			continue
		}
		id := metadata.PartitionID{Topic: t.ID, Number: l.partition}
		l.partition++
		if c.tracked[id] != nil || !c.cluster.Merges(id) {
			continue
		}
		looks++
		v, err := c.cluster.View(ctx, id)
		if err != nil || ctx.Err() != nil {
			continue // it is looked at when more is committed
		}
		if c.unmerged(v) {
			c.adopt(id, v)
		}
	}
}

// unmerged says whether a view shows anything that might be merged.
func (c *Compactor) unmerged(v *metadata.View) bool {
	for i := range v.Tail {
		if e := &v.Tail[i]; e.End > v.Start && e.Length <= c.config.TargetBytes/2 && !merged(e) {
			return true
		}
	}
	return !v.Closed && len(v.Levels) > 0
}

// adopt tracks a partition that nobody appended to since the start: all of it is at least that old.
func (c *Compactor) adopt(id metadata.PartitionID, v *metadata.View) {
	t := c.track(id)
	t.ages.marks = append(t.ages.marks, mark{v.Next, c.began, c.began})
	t.due = c.align(time.Now())
}
