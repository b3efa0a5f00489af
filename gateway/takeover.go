package gateway

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
)

// patrol watches who lives, for as long as the tenure does: it seals gateways that fell
// silent, and takes those of their partitions that are this gateway's to sequence, in
// the background. A partition that somebody needs at once does not wait for it.
func (t *tenure) patrol(ctx context.Context) error {
	p := patrol{t: t, estates: make(map[metadata.GatewayID]*estate)}
	rest := t.g.config.LeaseTime / 4 // before it looks again at what is pending
	for {
		changed := t.g.members.watch()
		pending, err := p.inspect(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, metadata.ErrFenced) {
				return err
			}
			t.g.log.Warn("not all partitions of gateways that are gone are taken over yet; it is tried again", "error", err)
		}
		t.sequencer.rebalance()
		var again <-chan time.Time
		if _, next := t.g.members.overdue(t.g.now()); pending || err != nil {
			again = time.After(rest)
		} else if next > 0 {
			again = time.After(next)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-again:
			rest = min(2*rest, longestRest)
			if err != nil { // the table may be back
				rest = t.g.config.LeaseTime / 4
			}
		case <-changed:
			rest = t.g.config.LeaseTime / 4
		}
		// Those who see the same should not all do something about it at once.
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(jitter(t.g.config.LeaseTime / 20)):
		}
	}
}

// longestRest is for how long a patrol rests that finds the same things pending time and again: some may
// stay so until somebody mends them.
const longestRest = time.Minute

// patrol is what a tenure knows of gateways that are gone.
type patrol struct {
	t       *tenure
	estates map[metadata.GatewayID]*estate
}

// estate is what a sealed gateway leaves behind: partitions with changes that are only in
// its journal.
type estate struct {
	journal *metadata.SealedJournal // without its rows
	left    map[metadata.PartitionID]bool
	broken  int // partitions that cannot be decoded: they stay where they are, and the journal with them
	taken   int // by this gateway
	found   time.Time
	settled bool // nothing is left for anybody
}

// inspect goes over all gateways that are gone. pending says that something is left to do
// although nobody comes or goes.
func (p *patrol) inspect(ctx context.Context) (pending bool, err error) {
	g := p.t.g
	for _, id := range g.members.silenced() {
		g.log.Warn("a gateway is gone: taking over from it", "gateway", id)
		if failed := g.members.seal(ctx, id); failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		g.meters.sealings.Add(1)
		if err := g.members.refresh(ctx); err != nil {
			return true, err
		}
	}
	departed := g.members.departed()
	for id := range p.estates {
		if _, there := slices.BinarySearch(departed, id); !there { // its row was removed
			delete(p.estates, id)
		}
	}
	for _, id := range departed {
		settled, failed := p.settle(ctx, id)
		if errors.Is(failed, metadata.ErrFenced) || ctx.Err() != nil {
			return true, failed
		}
		err = errors.Join(err, failed) // one that cannot be settled holds up no other
		pending = pending || !settled
	}
	return pending, errors.Join(err, g.closeOverdue(ctx))
}

// settle takes this gateway's part of an estate. One gateway, the first in order of those
// that live, sees to it that nothing is left, and removes the journal's rows.
func (p *patrol) settle(ctx context.Context, id metadata.GatewayID) (bool, error) {
	e := p.estates[id]
	if e == nil {
		journal, err := p.t.sequencer.readSealed(ctx, id)
		if lasting(err) {
			p.t.g.log.Error("the journal of a gateway that is gone cannot be read: the partitions whose last changes are in it cannot be taken over",
				"gateway", id, "error", err)
			p.estates[id] = &estate{settled: true} // it will not be any different tomorrow
			return true, nil
		}
		if err != nil {
			return false, err
		}
		e = newEstate(journal)
		p.estates[id] = e
	}
	if e.settled {
		return true, nil
	}
	if err := p.takeMine(ctx, e); err != nil {
		return false, err
	}
	if seeded.Has(seeded.TrimEarly) {
		return true, e.journal.Trim(ctx, p.t.g.table)
	}
	if !p.t.g.members.first() {
		// Should those whose part the rest is die too, it becomes this gateway's. It reads the journal again then.
		p.t.sequencer.moved(id)
		return true, nil
	}
	if err := p.dropMoved(ctx, id, e); err != nil || len(e.left) > 0 {
		return false, err
	}
	e.settled = true
	p.t.sequencer.moved(id)
	if e.broken > 0 {
		return true, nil
	}
	if err := e.journal.Trim(ctx, p.t.g.table); err != nil {
		e.settled = false
		return false, err
	}
	if e.taken > 0 {
		p.t.g.log.Info("all partitions of a gateway that is gone have been taken over", "gateway", id, "by_this_one", e.taken,
			"took", time.Since(e.found).Round(time.Millisecond))
	}
	return true, nil
}

func newEstate(journal *metadata.SealedJournal) *estate {
	e := &estate{left: make(map[metadata.PartitionID]bool), found: time.Now(),
		journal: &metadata.SealedJournal{ID: journal.ID, TrimmedTo: journal.TrimmedTo, Seal: journal.Seal}}
	for partition := range journal.Partitions() {
		e.left[partition] = true
	}
	return e
}

// takeMine takes the partitions of an estate that are this gateway's.
func (p *patrol) takeMine(ctx context.Context, e *estate) error {
	type answer struct {
		id  metadata.PartitionID
		err error
	}
	answers := make(chan answer, len(e.left))
	var tickets []*ticket
	for id := range e.left {
		if winner := p.t.g.members.winner(id); winner != p.t.id && winner != "" {
			continue
		}
		tickets = append(tickets, &ticket{partition: id, done: func(_ metadata.Verdict, err error) { answers <- answer{id, err} },
			decide: func(*metadata.Partition) (metadata.Verdict, *metadata.Change, error) {
				return metadata.Verdict{Status: metadata.Judged}, nil, nil // holding it is all that is asked
			}})
	}
	p.t.sequencer.submit(tickets...)
	var failed error
	for range tickets {
		select {
		case a := <-answers:
			switch {
			case a.err == nil:
				delete(e.left, a.id)
				e.taken++
			case errors.Is(a.err, metadata.ErrHeld): // somebody was quicker
			case errors.Is(a.err, metadata.ErrClosed): // its topic was removed, and its rows are gone
				delete(e.left, a.id)
			case lasting(a.err):
				delete(e.left, a.id)
				e.broken++
				p.t.g.log.Error("a partition cannot be taken over", "partition", a.id.String(), "error", a.err)
			default:
				failed = a.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return failed
}

// looksAtOnce is how many rows of partitions that others took are read at once.
const looksAtOnce = 32

// dropMoved notes what no longer rests on the journal of a gateway.
func (p *patrol) dropMoved(ctx context.Context, id metadata.GatewayID, e *estate) error {
	var mu sync.Mutex
	looks, looking := errgroup.WithContext(ctx)
	looks.SetLimit(looksAtOnce)
	for _, partition := range slices.Collect(maps.Keys(e.left)) {
		looks.Go(func() error {
			lease, err := metadata.ReadLease(looking, p.t.g.table, partition, metadata.Strong)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, metadata.ErrNotFound):
				delete(e.left, partition)
			case errors.Is(err, metadata.ErrCorrupt):
				delete(e.left, partition)
				e.broken++
			case err != nil:
				return err
			case lease.Source() != id || lease.Released:
				delete(e.left, partition)
			}
			return nil
		})
	}
	return looks.Wait()
}

// closeOverdue closes the ids of gateways that were sealed long ago and whose buffer has
// not come back: only who has their disk could settle their numbers.
func (g *Gateway) closeOverdue(ctx context.Context) error {
	overdue, _ := g.members.overdue(g.now())
	for _, row := range overdue {
		if !g.members.first() {
			continue
		}
		if err := metadata.MarkClosed(ctx, g.table, row.ID); err != nil {
			return err
		}
		g.meters.closings.Add(1)
		g.meters.lostRecords.Add(row.Buffered)
		g.log.Error("the buffer of a gateway has not come back: what it had acked as buffered and not committed is lost with its disk. "+
			"Should the disk come back after all, its buffer will be kept aside and named",
			"gateway", row.ID, "address", row.Address, "buffered_records_at_its_last_beat", row.Buffered, "waited", g.config.CloseAfter)
	}
	return nil
}
