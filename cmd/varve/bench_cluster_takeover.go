package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/metadata"
)

// takeoverCount is the end of one of three gateways.
type takeoverCount struct {
	Created int32 `json:"created_partitions"`
	Active  int   `json:"active_partitions"`
	// Start is how long the slowest of the gateways took to serve, FirstAppends how long the first append to each
	// active partition took then. In ms.
	Start        float64 `json:"start_ms"`
	FirstAppends float64 `json:"first_appends_ms"`
	// Heap is what the gateways keep in memory with so many active partitions, HeapAfter what those that are left
	// keep after the takeover. In bytes; other load in this process counts too.
	Heap      int64 `json:"heap_bytes"`
	HeapAfter int64 `json:"heap_after_bytes"`
	// HeapOfAll is what one gateway keeps when all that are created are active. In bytes.
	HeapOfAll int64 `json:"heap_all_active_bytes"`
	// Back is from the kill until each of the active partitions had taken an append again, BeyondLease what that is
	// longer than the lease time. In seconds.
	Back        float64 `json:"back_seconds"`
	BeyondLease float64 `json:"beyond_lease_seconds"`
	// Sealed is when the journal of the one that was killed was sealed; Moved what followed until Back; Floor is what
	// a read and a write for each active partition take on the same table, as many at once, with nothing else.
	Sealed  float64 `json:"sealed_after_seconds"`
	Moved   float64 `json:"moved_seconds"`
	Floor   float64 `json:"floor_seconds"`
	Refused int     `json:"refused"` // answers that said "later" meanwhile
	// Counts are of the gateways that are left, from the kill until nothing is left of the one that was killed;
	// TableCalls those of the table without beats and looks at them, which time causes; Seconds how long it was.
	Counts     counts  `json:"counts"`
	TableCalls uint64  `json:"table_calls"`
	Seconds    float64 `json:"seconds"`
}

func (t *takeoverCount) text() string {
	var b strings.Builder
	per := func(n uint64) float64 { return float64(n) / float64(t.Active) }
	fmt.Fprintf(&b, "takeover: %d active of %d created partitions\n", t.Active, t.Created)
	fmt.Fprintf(&b, "  back after  %.2f s: lease time %+.2f s; %d refusals meanwhile\n", t.Back, t.BeyondLease, t.Refused)
	fmt.Fprintf(&b, "  of which    %.2f s until its journal was sealed, %.2f s for the partitions; a read and a write each take %.2f s on this table\n", t.Sealed, t.Moved, t.Floor)
	fmt.Fprintf(&b, "  table       %d calls, %.2f a partition; by kind:", t.TableCalls, per(t.TableCalls))
	for kind := commitWrites; kind <= otherCalls; kind++ {
		if n := t.Counts[kind]; n > 0 {
			fmt.Fprintf(&b, " %s %d", strings.ReplaceAll(countedNames[kind], "_", " "), n)
		}
	}
	fmt.Fprintf(&b, "\n  start       %.0f ms; first appends to all active ones %.0f ms\n", t.Start, t.FirstAppends)
	fmt.Fprintf(&b, "  heap        %.1f MiB for three gateways, %.1f MiB for the two that are left; %.1f MiB for one with all of them active\n",
		float64(t.Heap)/mib, float64(t.HeapAfter)/mib, float64(t.HeapOfAll)/mib)
	return b.String()
}

// takeoverFleet is how many gateways there are before one of them is killed.
const takeoverFleet = 3

func (a *app) clusterTakeovers(ctx context.Context, o *clusterOptions, r *clusterReport) error {
	most := slices.Max(o.active)
	for i, created := range o.created {
		for _, active := range o.active {
			if i > 0 && active != most {
				continue // what is created changes, or what is active: one at a time
			}
			t, err := a.clusterTakeover(ctx, o, created, active)
			if err != nil {
				return err
			}
			a.notef("takeover of %d active of %d partitions: back after %.2f s, %d calls to the table", active, created, t.Back, t.TableCalls)
			r.Takeovers = append(r.Takeovers, *t)
		}
	}
	return nil
}

// takeover is one under way.
type takeover struct {
	*fleet
	topic  string
	active []int32
	count  takeoverCount
}

func (a *app) clusterTakeover(ctx context.Context, o *clusterOptions, created int32, active int) (_ *takeoverCount, err error) {
	f, err := a.newFleet(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	t := &takeover{fleet: f, topic: "takeover", count: takeoverCount{Created: created, Active: active}}
	topic, err := t.fill(ctx, created)
	if err != nil {
		return nil, err
	}
	base := f.liveHeap()
	t.count.HeapOfAll -= base
	if err := t.assemble(ctx, topic); err != nil {
		return nil, err
	}
	if err := t.activate(ctx); err != nil {
		return nil, err
	}
	t.count.Heap = f.liveHeap() - base
	if err := t.lose(ctx, f.members[0]); err != nil {
		return nil, err
	}
	t.count.HeapAfter = f.liveHeap() - base
	if err := t.floor(ctx); err != nil {
		return nil, err
	}
	return &t.count, nil
}

// fill creates all partitions and appends to each once, by a gateway that then leaves: each has its rows, and
// nobody has it.
func (t *takeover) fill(ctx context.Context, created int32) (topic metadata.TopicID, err error) {
	delay := t.delay
	t.delay = 0 // what is measured comes later
	defer func() { t.delay = delay }()
	if err := t.grow(ctx, 1); err != nil {
		return topic, err
	}
	if topic, err = t.createTopic(ctx, t.topic, created); err != nil {
		return topic, err
	}
	if err := t.appendAll(ctx, t.topic, upTo(created)); err != nil {
		return topic, err
	}
	t.count.HeapOfAll = t.liveHeap()
	return topic, t.drain(t.members)
}

// assemble starts the gateways, of which the first will be killed, and picks active partitions of its own.
func (t *takeover) assemble(ctx context.Context, topic metadata.TopicID) error {
	drain := t.config.DrainTime
	t.config.DrainTime = time.Second // it will be dead
	if err := t.grow(ctx, 1); err != nil {
		return err
	}
	t.config.DrainTime = drain
	if err := t.grow(ctx, takeoverFleet-1); err != nil {
		return err
	}
	for _, m := range t.members {
		t.count.Start = max(t.count.Start, milliseconds(m.started))
	}
	share := t.shares(topic, t.count.Created)[0]
	if len(share) < t.count.Active {
		return usagef("%d active partitions: of %d that are created one of %d gateways has only %d", t.count.Active, t.count.Created, takeoverFleet, len(share))
	}
	t.active = share[:t.count.Active]
	return nil
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

// activate appends to the active partitions, several times: none of that is in a checkpoint.
func (t *takeover) activate(ctx context.Context) error {
	const rounds = 4
	for i := range rounds {
		began := time.Now()
		if err := t.appendAll(ctx, t.topic, t.active); err != nil {
			return err
		}
		if i == 0 {
			t.count.FirstAppends = milliseconds(time.Since(began))
		}
	}
	return t.quiet(ctx)
}

// lose kills a gateway, and measures until its partitions are back and nothing is left of it.
func (t *takeover) lose(ctx context.Context, victim *fleetMember) error {
	request, err := oneEach(t.topic, t.active, markSize)
	if err != nil {
		return err
	}
	t.kill(victim)
	t.members = slices.DeleteFunc(t.members, func(m *fleetMember) bool { return m == victim })
	began, before := time.Now(), t.counts()
	for {
		err := t.members[0].produce(ctx, request)
		if err == nil {
			break
		}
		var refused *refusal
		if !errors.As(err, &refused) || !sleep(ctx, refusedPause) {
			return err
		}
		t.count.Refused++
	}
	back := time.Since(began)
	t.count.Back, t.count.BeyondLease = back.Seconds(), (back - t.config.LeaseTime).Seconds()
	for _, m := range t.members {
		if at := m.counter.sealed.Load(); at != nil {
			t.count.Sealed = max(t.count.Sealed, at.Sub(began).Seconds())
		}
	}
	t.count.Moved = t.count.Back - t.count.Sealed
	if err := t.buried(ctx, victim.gateway.ID()); err != nil {
		return err
	}
	if err := t.quiet(ctx); err != nil {
		return err
	}
	t.count.Counts, t.count.Seconds = t.counts().minus(before), time.Since(began).Seconds()
	t.count.TableCalls = t.count.Counts.tableCalls()
	<-victim.ended
	victim.gateway = nil
	return nil
}

// floor reads and writes a row for each active partition: the least that moving them takes.
func (t *takeover) floor(ctx context.Context) error {
	table := mortalTable{t.table, t.members[0].life, t.delay}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(floorAtOnce)
	began := time.Now()
	for _, n := range t.active {
		group.Go(func() error {
			key := metadata.Key{Partition: fmt.Sprintf("floor/%d", n), Sort: "lease"}
			if _, err := table.Get(ctx, key, metadata.Strong); !errors.Is(err, metadata.ErrNotFound) {
				return fmt.Errorf("a row of the bench itself: %w", err)
			}
			return table.Put(ctx, metadata.Row{Key: key, Stamp: metadata.Stamp{Epoch: 1}, Nonce: metadata.NewNonce(), Value: make([]byte, floorRow)}, metadata.IfAbsent())
		})
	}
	err := group.Wait()
	t.count.Floor = time.Since(began).Seconds()
	return err
}

// The floor of a takeover: calls at once, as a gateway makes, and bytes of a lease row.
const (
	floorAtOnce = 64
	floorRow    = 100
)

// buriedTimeout bounds the wait for the last of a gateway that was killed.
const buriedTimeout = 60 * time.Second

// buried waits until the journal of a gateway has no entries left: its opening row and its seal remain.
func (t *takeover) buried(ctx context.Context, id metadata.GatewayID) error {
	ctx, cancel := context.WithTimeoutCause(ctx, buriedTimeout, fmt.Errorf("the journal of the gateway that was killed has still entries after %s", buriedTimeout))
	defer cancel()
	for {
		rows, err := t.table.Range(ctx, metadata.Range{Partition: "journal/" + string(id), Consistency: metadata.Strong})
		if err == nil && len(rows) <= 2 {
			return nil
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// liveHeap is what is reachable on the heap, in bytes, once nothing holds gateways that have ended, and what
// they held, any more.
func (f *fleet) liveHeap() int64 {
	const patience = 15 * time.Second
	for began := time.Now(); ; time.Sleep(quietTime / 3) {
		runtime.GC()
		runtime.GC() // what finalizers and pools held
		alive := 0
		for _, g := range *f.made {
			if g.Value() != nil {
				alive++
			}
		}
		if alive > len(f.members) && time.Since(began) < patience {
			continue
		}
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
}
