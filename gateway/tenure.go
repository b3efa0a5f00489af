package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// tenure is what a gateway does under one id: it sequences with that id's journal, uploads
// under that id's name, and beats its row. When another gateway seals the journal the
// sequencing ends at once; the uploads go on until each segment has its verdict, so
// that what was under way lands, once.
type tenure struct {
	g         *Gateway
	id        metadata.GatewayID
	sequencer *sequencer
	intake    *intake
	own       *ownRow
	// over is closed when followers must end.
	over chan struct{}
	end  sync.Once
	why  error // what they are told
	// uploading ends the intake.
	uploading context.CancelCauseFunc
}

func newTenure(g *Gateway) *tenure {
	t := &tenure{g: g, id: metadata.NewGatewayID(g.now()), over: make(chan struct{})}
	t.sequencer = newSequencer(t)
	t.intake = newIntake(t)
	t.own = &ownRow{t: t, using: make(chan struct{}, 1)}
	return t
}

// errStopped and errDraining answer what a gateway that ends can no longer do.
var (
	errStopped  error = refuse(connect.CodeUnavailable, reasonDraining, "this gateway has stopped; ask another one, or again in a moment").withRetriable()
	errDraining error = refuse(connect.CodeUnavailable, reasonDraining, "this gateway is shutting down; ask another one, or again in a moment").withRetriable()
	errReborn   error = refuse(connect.CodeUnavailable, reasonFenced, "another gateway took this one for dead, and it is starting again; ask again in a moment").withRetriable()
)

// join makes this gateway a member under the tenure's id.
func (t *tenure) join(ctx context.Context) error {
	g := t.g
	if err := g.generation.check(ctx); err != nil {
		return err
	}
	if err := g.generation.raise(ctx); err != nil {
		return fmt.Errorf("raise the generation: %w", err)
	}
	journal, err := metadata.OpenJournal(ctx, g.table, t.id)
	if err != nil {
		return err
	}
	t.sequencer.journal = journal
	if err := t.own.register(ctx); err != nil {
		return err
	}
	return g.members.look(ctx)
}

// serve runs until ctx ends and everything has drained (nil, or why it could not), or
// until another gateway took over: metadata.ErrFenced.
func (t *tenure) serve(ctx, work context.Context) error {
	uploading, stop := context.WithCancelCause(work)
	t.uploading = stop
	t.g.intakes.Go(func() { t.intake.run(uploading) })
	life, end := context.WithCancelCause(work)
	defer end(nil)
	group, life := errgroup.WithContext(life)
	group.Go(func() error { return t.sequencer.run(life) })
	group.Go(func() error { return t.own.run(life) })
	group.Go(func() error { return t.patrol(life) })
	var drained error
	select {
	case <-ctx.Done():
		t.g.setState(false, stateDraining)
		t.finishFollowers(errDraining)
		limit, cancel := context.WithTimeout(life, t.g.config.DrainTime)
		drained = t.drain(limit)
		cancel()
	case <-life.Done():
	}
	t.finishFollowers(errReborn)
	end(errStopped)
	err := group.Wait()
	if errors.Is(err, metadata.ErrFenced) && ctx.Err() == nil {
		t.intake.refuse(errReborn)
		return err
	}
	if errors.Is(err, metadata.ErrFenced) { // while it was leaving
		return t.stopFenced(work)
	}
	stop(errStopped)
	if errors.Is(err, errStopped) {
		err = nil
	}
	return errors.Join(err, drained)
}

// stopFenced finishes what was accepted when another gateway took over from one that leaves.
func (t *tenure) stopFenced(work context.Context) error {
	defer t.uploading(errStopped)
	ctx, cancel := context.WithTimeout(work, t.g.config.DrainTime)
	defer cancel()
	t.g.members.bury(t.id)
	t.g.members.leave()
	if err := t.drainIntakes(ctx); err != nil {
		return err
	}
	return t.g.closePredecessor(ctx, t.id)
}

// drainIntakes waits until everything that was accepted is settled.
func (t *tenure) drainIntakes(ctx context.Context) error {
	err := t.intake.drain(ctx)
	if err == nil {
		err = t.g.drainEarlier(ctx)
	}
	if err != nil {
		return fmt.Errorf("drain: not everything could be committed: what was acked as buffered stays in the buffer for the next start, "+
			"what was to be acked as committed is unknown to its producers: %w", err)
	}
	return nil
}

func (t *tenure) finishFollowers(why error) {
	t.end.Do(func() {
		t.why = why
		close(t.over)
	})
}

// ended is what followers are told once it is over.
func (t *tenure) ended() error { return t.why }

// drain finishes what was accepted and leaves in good order.
func (t *tenure) drain(ctx context.Context) error {
	t.own.draining(ctx)
	if err := t.drainIntakes(ctx); err != nil {
		return err
	}
	if err := t.sequencer.leave(ctx); err != nil {
		return fmt.Errorf("drain: leave partitions: %w", err)
	}
	return t.own.close(ctx)
}

// finish waits until each segment of a tenure that was fenced has its verdicts, then closes
// its id.
func (t *tenure) finish(work context.Context) {
	defer t.uploading(errStopped)
	if err := t.intake.drain(work); err != nil {
		return // the gateway stops: what was acked as buffered is in its file
	}
	if t.intake.kept.Load() {
		// Its numbers are not all settled: the id stays open until the next start has tried again.
		t.g.log.Error("what was acked as buffered could not all be appended: its file stays, and the next start tries again", "gateway", t.id)
		return
	}
	pauses := metadata.DefaultBackOff()
	for {
		err := t.g.closePredecessor(work, t.id)
		if err == nil {
			t.g.log.Info("everything that was under way when this gateway was taken for dead has landed", "gateway", t.id)
			return
		}
		if pause(work, pauses) != nil {
			return
		}
	}
}

// ownRow keeps the row of the tenure's gateway: its heartbeat.
type ownRow struct {
	t      *tenure
	silent since // heartbeats do not succeed

	using chan struct{} // holds one while somebody uses row: whoever waits for it can give up
	row   *metadata.Gateway
	// fenced is what a write came upon: the row was marked sealed or closed.
	fenced error
}

// register writes the row. The id's folder in the buffer is there before it:
// whatever happens in between, the next start knows whose row it was.
func (o *ownRow) register(ctx context.Context) error {
	g := o.t.g
	if g.buffers != nil {
		if err := g.buffers.Register(segments.GatewayID(o.t.id)); err != nil {
			return err
		}
	}
	c := g.config
	row, err := metadata.RegisterGateway(ctx, g.table, metadata.Gateway{ID: o.t.id, Address: c.Address, Peer: c.PeerAddress, Protocol: peerProtocol,
		Zone: c.Zone, Version: c.Version, Role: c.Role, Floor: 1, MergeFloor: 1})
	if err != nil {
		return err
	}
	o.row = row
	g.members.beat()
	return nil
}

// run beats until ctx ends, unless nobody else can reach the table. It returns
// metadata.ErrFenced when another gateway took this one for dead.
func (o *ownRow) run(ctx context.Context) error {
	g := o.t.g
	if g.config.Exclusive {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	for next := time.Now().Add(g.config.LeaseTime / 3); ; {
		// Not a ticker: one that has ticked while nobody listened crashes the race detector now and then
		// where time is virtual (Go 1.26).
		if wait := time.Until(next); wait > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		next = time.Now().Add(g.config.LeaseTime / 3)
		o.silent.begin() // a table that hangs does not say so
		limit, cancel := context.WithTimeout(ctx, g.config.LeaseTime)
		err := o.write(limit, "")
		cancel()
		switch {
		case err == nil:
			g.members.beat()
			if lasted := o.silent.end(); lasted > g.config.LeaseTime/2 {
				g.log.Info("heartbeats succeed again", "after", lasted.Round(time.Millisecond))
			}
		case errors.Is(err, metadata.ErrFenced):
			return err
		case ctx.Err() == nil:
			g.log.Warn("no heartbeat: the table does not answer", "error", err)
		}
	}
}

// write writes the row, in a new state if one is given.
func (o *ownRow) write(ctx context.Context, state metadata.GatewayState) error {
	select {
	case o.using <- struct{}{}:
		defer func() { <-o.using }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	switch {
	case state != "":
		o.row.State = state
	case o.fenced != nil: // whoever came upon it, the heartbeats must hear of it
		return o.fenced
	}
	o.row.Floor, o.row.Buffered = o.t.intake.floor()
	o.row.MergeFloor = o.t.mergeFloor()
	o.row.Clock, o.row.TopicChanges = o.t.g.now().UnixMilli(), o.t.g.upkeep.changes.Load()
	o.row.Garbage = o.t.g.litter.ofOwn()
	o.row.Partitions = uint64(o.t.sequencer.holding.Load())
	err := o.row.Write(ctx, o.t.g.table)
	if errors.Is(err, metadata.ErrFenced) {
		o.fenced = err
	}
	return err
}

// drainingTime is how long telling the others may take.
const drainingTime = 2 * time.Second

// draining tells the others that this gateway is about to leave.
func (o *ownRow) draining(ctx context.Context) {
	g := o.t.g
	g.members.leave()
	if g.config.Exclusive {
		return // there are no others
	}
	ctx, cancel := context.WithTimeout(ctx, drainingTime)
	defer cancel()
	if err := o.write(ctx, metadata.GatewayDraining); err != nil {
		g.log.Warn("the others do not know that this gateway is leaving", "error", err)
	}
}

// close ends the id: all of its numbers are settled, its journal is sealed.
func (o *ownRow) close(ctx context.Context) error {
	g := o.t.g
	if g.buffers == nil {
		return o.write(ctx, metadata.GatewayClosed)
	}
	id := segments.GatewayID(o.t.id)
	if err := g.buffers.SettleGateway(id); err != nil {
		return err
	}
	if err := o.write(ctx, metadata.GatewayClosed); err != nil {
		return err
	}
	return g.buffers.RemoveGateway(id)
}
