package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// Gateway serves the log. New makes it without starting anything; Run owns
// everything that runs.
type Gateway struct {
	config  Config
	store   segments.Store
	notes   segments.Store // the same, for objects of a few bytes: a start does not wait long for an answer that is lost
	table   metadata.Table
	buffers *segments.BufferDir // nil: no disk, acks=buffered is refused
	log     *slog.Logger
	meters  *Meters
	ledger  *bill.Ledger
	now     func() time.Time

	cluster *metadata.Cluster
	topics  *metadata.Topics

	partitions *partitions
	reader     *reader
	members    *members
	peers      *peers
	router     *router
	mirrors    *mirrors
	latest     *latest
	journals   *metadata.Journals
	deletions  *deletions
	generation *generation
	litter     *litter
	collect    CollectFunc // nil: nobody collects garbage here
	resting    *resting
	bodies     *bodies
	compaction *compaction
	upkeep     *Upkeep
	recovered  []segments.RecoveredFile // what predecessors left in the buffer
	// predecessors are ids that ended without closing, on this data folder or table.
	predecessors []metadata.GatewayID

	producerIDs producerIDs
	failing     since // uploads do not succeed

	tenure atomic.Pointer[tenure]
	// intakes run; finishing are tenures that ended while segments of theirs were on their way.
	intakes, finishing sync.WaitGroup
	state              atomic.Pointer[readiness]
	// caughtUp is closed when nothing of predecessors is left to recover.
	caughtUp chan struct{}
}

// notesRetry goes on for as long as segments.DefaultRetry, with shorter tries.
var notesRetry = segments.RetryConfig{Tries: 6, MinWait: 50 * time.Millisecond, MaxWait: 5 * time.Second, TryTimeout: 5 * time.Second}

// readiness is what /readyz says.
type readiness struct {
	ready  bool
	reason string
}

// Dependencies are what a gateway works on. They stay open until Run has returned.
type Dependencies struct {
	Store segments.Store
	Table metadata.Table
	// Buffers is where appends acked as buffered survive a crash. Nil: that ack is refused.
	Buffers *segments.BufferDir
	Log     *slog.Logger
	Meters  *Meters
	// Dial makes the transport to the peer service at an address, host:port. Nil: HTTP/2
	// without TLS.
	Dial func(address string) connect.Transport
	// Now is the wall clock; nil: time.Now. It dates records and rows, and decides about nothing that
	// is less than days: those of other hosts may show another hour.
	Now func() time.Time
	// FreeMemory gives memory back to the system, after work. Nil: two collections, the second by [debug.FreeOSMemory], which is for
	// one gateway in a process.
	FreeMemory func()
}

// New returns a gateway that is not running yet.
func New(config Config, d Dependencies) (*Gateway, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	g := &Gateway{
		config: config, buffers: d.Buffers, log: d.Log, meters: d.Meters, now: d.Now, caughtUp: make(chan struct{}),
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if g.meters == nil {
		g.meters = NewMeters()
	}
	if g.now == nil {
		g.now = time.Now
	}
	g.ledger = bill.NewLedger(g.now())
	// Counted below the retries: what a bucket bills are tries.
	observed := g.ledger.Store(g.meters.observeStore(d.Store))
	g.store, g.notes = segments.Retry(g.hedged(observed), segments.DefaultRetry()), segments.Retry(observed, notesRetry)
	g.table = metadata.Retry(g.ledger.Table(g.meters.observeTable(d.Table)), fewPauses)
	g.topics = metadata.NewTopics(g.table)
	g.producerIDs.turn = make(chan struct{}, 1)
	g.upkeep = newUpkeep(g)
	g.partitions = newPartitions(g)
	g.reader = newReader(g)
	g.litter = newLitter()
	g.members = newMembers(g)
	g.peers = newPeers(g, d.Dial)
	g.router = newRouter(g)
	g.journals = metadata.NewJournals(g.table)
	g.mirrors = newMirrors(g)
	g.latest = newLatest(g)
	g.deletions = newDeletions(g)
	g.generation = &generation{gateway: g}
	g.resting = newResting(g)
	g.bodies = newBodies(g.config.MaxRequestBytes)
	g.compaction = newCompaction(g)
	if d.FreeMemory != nil {
		g.resting.free = d.FreeMemory
	}
	g.tenure.Store(newTenure(g))
	g.setState(false, "starting")
	return g, nil
}

// hedged returns the store with late reads sent a second time, within a share of them.
func (g *Gateway) hedged(store segments.Store) segments.Store {
	if g.config.HedgeShare < 0 {
		return store
	}
	return segments.Hedge(store, segments.HedgeConfig{Share: g.config.HedgeShare,
		Sent: func() { g.meters.hedges.Add(1) }, Won: func() { g.meters.hedgesWon.Add(1) }})
}

// ID names this run of the gateway. It changes when another gateway took this one for
// dead and it goes on under a new id.
func (g *Gateway) ID() metadata.GatewayID { return g.tenure.Load().id }

// ClusterID names the cluster, once Run has begun to serve.
func (g *Gateway) ClusterID() string {
	if g.cluster == nil {
		return ""
	}
	return g.cluster.ID
}

// Ready says whether the gateway serves, and if not, why.
func (g *Gateway) Ready() (bool, string) {
	s := g.state.Load()
	if s.ready {
		t := g.tenure.Load()
		if err := t.intake.healthy(); err != nil {
			return false, err.Error()
		}
		if lasting := t.own.silent.lasting(); lasting > stalled {
			return false, fmt.Sprintf("the table has not taken a heartbeat for %s", lasting.Round(time.Second))
		}
	}
	return s.ready, s.reason
}

func (g *Gateway) setState(ready bool, reason string) {
	g.state.Store(&readiness{ready, reason})
}

// Run serves until ctx ends, then drains: not ready, followers end, appends are
// refused, what is open is sealed, uploaded, committed and answered, partitions are
// checkpointed and the journal sealed. started is called once it serves.
// When another gateway took this one for dead, it goes on under a new id. It returns
// nil after a clean drain.
func (g *Gateway) Run(ctx context.Context, started func()) error {
	// Work outlives ctx until the drain is over.
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	if err := g.start(ctx); err != nil {
		return err
	}
	g.predecessors = g.members.unclosed()
	group, work := errgroup.WithContext(work)
	group.Go(func() error { return g.members.run(work) })
	g.mirrors.live(work)
	group.Go(func() error { return g.mirrors.run(work) })
	group.Go(func() error { return g.resting.run(work) })
	group.Go(func() error { return g.compaction.run(work) })
	group.Go(func() error { return g.recover(work) })
	g.setState(true, "")
	if started != nil {
		started()
	}
	drained := g.serve(ctx, work)
	g.setState(false, "stopped")
	stop(errStopped)
	err := group.Wait()
	if errors.Is(err, errStopped) || errors.Is(err, context.Canceled) {
		err = nil
	}
	g.finishing.Wait()
	g.intakes.Wait()
	return errors.Join(err, drained)
}

// start opens everything and becomes a member, within the time for that.
func (g *Gateway) start(ctx context.Context) error {
	began, pauses := time.Now(), metadata.DefaultBackOff()
	for {
		err := g.open(ctx)
		if err == nil && g.config.CheckAddress {
			err = g.peers.checkAddress(ctx)
		}
		if err == nil {
			err = g.tenure.Load().join(ctx)
		}
		if err == nil || !unanswered(err) || time.Since(began) >= g.config.StartTime {
			return err
		}
		g.log.Warn("the start waits for a bucket or table that does not answer", "error", err)
		if err := pause(ctx, pauses); err != nil {
			return err
		}
		g.members.bury(g.ID()) // whatever of it is in the table, it will do nothing
		g.tenure.Store(newTenure(g))
	}
}

// unanswered says that nobody refused anything: trying again may help.
func unanswered(err error) bool {
	return errors.Is(err, segments.ErrUnavailable) || errors.Is(err, metadata.ErrUnavailable) || errors.Is(err, metadata.ErrUnknown)
}

// serve holds one tenure after another until ctx ends and the last one has drained.
func (g *Gateway) serve(ctx, work context.Context) error {
	for {
		t := g.tenure.Load()
		err := t.serve(ctx, work)
		if !errors.Is(err, metadata.ErrFenced) || work.Err() != nil {
			return err
		}
		g.setState(false, "another gateway took this one for dead; it is starting again under a new id")
		g.meters.fences.Add(1)
		next, err := g.succeed(ctx, t)
		if ctx.Err() != nil && next == nil { // it is to stop: no new tenure is needed for that
			return t.stopFenced(work)
		}
		if err != nil {
			return err
		}
		g.finishing.Go(func() { t.finish(work) })
		g.tenure.Store(next)
		g.members.adopt()
		g.setState(true, "")
		g.log.Warn("goes on under a new id", "gateway", next.id, "was", t.id)
	}
}

// succeed begins the tenure after one that was fenced, as soon as the table lets it.
func (g *Gateway) succeed(ctx context.Context, was *tenure) (*tenure, error) {
	g.log.Warn("another gateway took this one for dead: what it had under way goes on, what it sequenced does not", "gateway", was.id)
	g.members.bury(was.id)
	pauses := metadata.DefaultBackOff()
	for {
		next := newTenure(g)
		err := next.join(ctx)
		if err == nil {
			return next, nil
		}
		g.members.bury(next.id)            // whatever of it is in the table, it will do nothing
		if errors.As(err, new(*refusal)) { // the table was rolled back: it must not be served
			return nil, err
		}
		g.log.Warn("cannot start under a new id yet; it is tried again", "error", err)
		if err := pause(ctx, pauses); err != nil {
			return nil, err
		}
	}
}

// drainEarlier waits for what earlier tenures have under way.
func (g *Gateway) drainEarlier(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		g.finishing.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
