package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// Gateway serves the log. New makes it without starting anything; Run owns
// everything that runs.
type Gateway struct {
	config  Config
	id      metadata.GatewayID
	store   segments.Store
	table   metadata.Table
	buffers *segments.BufferDir // nil: no disk, acks=buffered is refused
	log     *slog.Logger
	meters  *Meters
	now     func() time.Time

	cluster *metadata.Cluster
	topics  *metadata.Topics

	partitions *partitions
	sequencer  *sequencer
	intake     *intake
	reader     *reader
	members    *members
	generation *generation
	resting    *resting
	recovered  []segments.RecoveredFile // what predecessors left in the buffer

	producerIDs producerIDs

	state atomic.Pointer[readiness]
	done  chan struct{} // closed when appends and followers must end
	// caughtUp is closed when nothing of predecessors is left to recover.
	caughtUp chan struct{}
}

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
}

// New returns a gateway that is not running yet.
func New(config Config, d Dependencies) (*Gateway, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	g := &Gateway{
		config: config, id: metadata.NewGatewayID(time.Now()), buffers: d.Buffers, log: d.Log, meters: d.Meters,
		now: time.Now, done: make(chan struct{}), caughtUp: make(chan struct{}),
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if g.meters == nil {
		g.meters = NewMeters()
	}
	// Counted below the retries: what a bucket bills are tries.
	g.store = segments.Retry(g.meters.observeStore(d.Store), segments.DefaultRetry())
	g.table = metadata.Retry(g.meters.observeTable(d.Table), fewPauses)
	g.topics = metadata.NewTopics(g.table)
	g.partitions = newPartitions()
	g.reader = newReader(g)
	g.sequencer = newSequencer(g)
	g.intake = newIntake(g)
	g.members = newMembers(g)
	g.generation = &generation{gateway: g}
	g.resting = newResting(g)
	g.setState(false, "starting")
	return g, nil
}

// ID names this run of the gateway.
func (g *Gateway) ID() metadata.GatewayID { return g.id }

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
		if err := g.intake.healthy(); err != nil {
			return false, err.Error()
		}
		if lasting := g.members.silent.lasting(); lasting > stalled {
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
// It returns nil after a clean drain, metadata.ErrFenced when another gateway took over.
func (g *Gateway) Run(ctx context.Context, started func()) error {
	// Work outlives ctx until the drain is over.
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	if err := g.join(ctx); err != nil {
		close(g.done)
		return err
	}
	group, work := errgroup.WithContext(work)
	group.Go(func() error { return g.sequencer.run(work) })
	group.Go(func() error { return g.intake.run(work) })
	group.Go(func() error { return g.members.run(work) })
	group.Go(func() error { return g.resting.run(work) })
	group.Go(func() error { return g.recover(work) })
	g.setState(true, "")
	if started != nil {
		started()
	}
	select {
	case <-ctx.Done():
	case <-work.Done():
	}
	g.setState(false, "draining")
	close(g.done)
	var drained error
	if work.Err() == nil {
		limit, cancel := context.WithTimeout(work, g.config.DrainTime)
		drained = g.drain(limit)
		cancel()
	}
	g.setState(false, "stopped")
	stop(errStopped)
	err := group.Wait()
	if errors.Is(err, errStopped) || errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, drained)
}

// errStopped and errDraining answer what a gateway that ends can no longer do.
var (
	errStopped  error = refuse(connect.CodeUnavailable, reasonDraining, "this gateway has stopped; ask another one, or again in a moment").withRetriable()
	errDraining error = refuse(connect.CodeUnavailable, reasonDraining, "this gateway is shutting down; ask another one, or again in a moment").withRetriable()
)

// drain finishes what was accepted and leaves in good order.
func (g *Gateway) drain(ctx context.Context) error {
	g.members.draining(ctx)
	if err := g.intake.drain(ctx); err != nil {
		return fmt.Errorf("drain: not everything could be committed: what was acked as buffered stays in the buffer for the next start, "+
			"what was to be acked as committed is unknown to its producers: %w", err)
	}
	if err := g.sequencer.leave(ctx); err != nil {
		return fmt.Errorf("drain: leave partitions: %w", err)
	}
	return g.members.close(ctx)
}
