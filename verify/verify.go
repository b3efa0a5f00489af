package verify

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// DefaultGrace is how old an uploader must be for its objects to count as orphans.
const DefaultGrace = time.Hour

const (
	defaultParallel = 16
	// attempts is how often a partition is read that moves while it is, with pauses that
	// double from attemptPause: 20 seconds in all. A checkpoint comes once in seconds at most.
	attempts     = 12
	attemptPause = 5 * time.Millisecond
	// progressPace is how often progress is told.
	progressPace = time.Second
)

// Config says what to verify.
type Config struct {
	// Store and Table should try reads again that fail as unavailable (segments.Retry,
	// metadata.Retry): an error ends the run.
	Store segments.Store
	Table metadata.Table
	// Deep also reads the bytes of every batch.
	Deep bool
	// Repair removes what is provably garbage. Nothing else is ever written.
	Repair bool
	// Acknowledge asks a gateway that lives whether it knows of all that are closed: see gateway.Gateway.Acknowledge. Only Repair
	// asks. Nil: nobody can be asked, and while a gateway lives nothing goes of those that are closed.
	Acknowledge func(context.Context, metadata.GatewayID) error
	// Grace is extra caution against clocks and people: objects of an uploader that was minted later than
	// this long ago are no orphans yet (default: DefaultGrace).
	Grace time.Duration
	// Parallel is how many partitions, and how many objects, are read at once (default 16).
	Parallel int
	// Now is the wall clock (default: time.Now). Only Grace looks at it.
	Now func() time.Time
	// Progress is told now and then what was looked at so far; may be nil.
	Progress func(Summary)
}

// Validate lists every fault at once.
func (c Config) Validate() error {
	var faults []error
	if c.Store == nil || c.Table == nil {
		faults = append(faults, errors.New("verify: a store and a table are needed"))
	}
	if c.Grace < 0 {
		faults = append(faults, fmt.Errorf("verify: grace %s is negative", c.Grace))
	}
	if c.Parallel < 0 {
		faults = append(faults, fmt.Errorf("verify: %d reads at once", c.Parallel))
	}
	return errors.Join(faults...)
}

func (c Config) withDefaults() Config {
	if c.Grace == 0 {
		c.Grace = DefaultGrace
	}
	if c.Parallel == 0 {
		c.Parallel = defaultParallel
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// ErrMoving says that a partition's lease row changed under every attempt to read it: nothing
// is known to be wrong, run again.
var ErrMoving = errors.New("verify: a partition moves faster than it can be read")

// Run checks bucket and table, which gateways may work on meanwhile, and reports what it finds, one
// finding at a time. The error says why it could not go on: what was reported stands, what was
// not is not known. A table that no gateway has served on is metadata.ErrNotFound.
func Run(ctx context.Context, config Config, report func(Finding)) (Summary, error) {
	if err := config.Validate(); err != nil {
		return Summary{}, err
	}
	v := &verifier{
		Config: config.withDefaults(), tell: report,
		gateways: make(map[metadata.GatewayID]metadata.Gateway), topics: make(map[metadata.TopicID]*metadata.Topic), swept: make(map[metadata.TopicID]bool),
		journals: make(map[metadata.GatewayID]*journal), epochs: make(map[epochKey]metadata.GatewayID),
		needed: make(map[metadata.GatewayID]bool), told: make(map[told]bool),
	}
	err := v.run(ctx)
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.summary, err
}

type verifier struct {
	Config
	cluster *metadata.Cluster
	tell    func(Finding)

	mu       sync.Mutex
	summary  Summary
	progress time.Time
	// lost: breaks were found for which what the index names may not all be known.
	lost bool
	// unheard: not every gateway that lives has said that it knows which are closed.
	unheard bool
	// needed are gateways whose journal a lease names.
	needed map[metadata.GatewayID]bool
	// journals as far as they are known.
	journals map[metadata.GatewayID]*journal

	gateways map[metadata.GatewayID]metadata.Gateway // as they were before anything else was read
	topics   map[metadata.TopicID]*metadata.Topic
	swept    map[metadata.TopicID]bool // removed, and the gateways remove what is left
	epochs   map[epochKey]metadata.GatewayID
	named    metadata.SegmentSet
	group    group
	told     map[told]bool // group.mu
}

func (v *verifier) run(ctx context.Context) error {
	steps := []func(context.Context) error{
		v.checkGeneration, v.readGateways, v.readTopics, v.readRemoved, v.checkBucket,
		v.checkJournals, v.checkPartitions, v.flush, v.checkLeftovers, v.checkObjects,
	}
	for _, step := range steps {
		if err := step(ctx); errors.Is(err, errNoFurther) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// errNoFurther ends a run whose findings say all there is.
var errNoFurther = errors.New("verify: nothing further to compare")

// report counts a finding and tells it.
func (v *verifier) report(f Finding) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.Repair || f.Repaired {
		f.Stays = ""
	}
	if f.Stays != "" {
		f.Message += ItStays + f.Stays
	}
	switch {
	case f.Kind.Break():
		v.summary.Breaks++
		v.lost = v.lost || !f.Kind.inBytes()
	default:
		v.summary.Garbage++
		if f.Repaired {
			v.summary.Repaired++
		}
	}
	v.tell(f)
}

// count changes the summary, and tells progress once in a while.
func (v *verifier) count(change func(*Summary)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change(&v.summary)
	if now := time.Now(); v.Progress != nil && now.Sub(v.progress) >= progressPace {
		v.progress = now
		v.Progress(v.summary)
	}
}

// broken says whether anything was found that forbids to remove, or even to judge, garbage
// in the bucket.
func (v *verifier) broken() (lost, any bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.lost, v.summary.Breaks > 0
}

// pause waits before a partition is read again.
func pause(ctx context.Context, attempt int) error {
	timer := time.NewTimer(attemptPause << attempt)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
