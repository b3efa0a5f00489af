package metadata_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/metadata/tabletest"
)

// inBubble lets rapid run where time is not real, so that pauses between tries cost
// nothing. (rapid asks a *testing.T for its deadline, which a bubble has not.)
type inBubble struct{ *testing.T }

func checkInBubble(t *testing.T, property func(*rapid.T)) {
	synctest.Test(t, func(t *testing.T) { rapid.Check(inBubble{t}, property) })
}

// owner is a gateway as far as one partition can see.
type owner struct {
	journal *metadata.Journal
	state   *metadata.Partition
	lease   *metadata.Lease
}

// history drives one partition through appends, checkpoints and takeovers over a
// table with faults, beside a model.
type history struct {
	table   *tabletest.Faulty
	id      metadata.PartitionID
	model   *model
	owner   owner
	zombies []owner
	owners  int
	sent    map[metadata.GatewayID][]*metadata.Reference
	high    map[metadata.GatewayID]uint64
	rates   map[tabletest.FaultKind]float64
	seeds   uint64
	did     map[string]int
	readers readers
	// shared are the journals that those share who read the partition between the calls, meanwhile what goes on then.
	shared    *metadata.Journals
	meanwhile func()
}

func newHistory(rt *rapid.T, did map[string]int) *history {
	h := &history{model: newModel(), did: did,
		id:   metadata.PartitionID{Topic: metadata.TopicID{7}, Number: 3},
		sent: map[metadata.GatewayID][]*metadata.Reference{}, high: map[metadata.GatewayID]uint64{},
		rates: map[tabletest.FaultKind]float64{tabletest.LostAnswer: 0.05, tabletest.Vanished: 0.05, tabletest.Late: 0.05, tabletest.Unavailable: 0.05},
		seeds: rapid.Uint64().Draw(rt, "faults")}
	inner := memtable.New()
	h.readers = newReaders(h.id)
	h.table = tabletest.NewFaulty(metadata.Observe(inner, func(o metadata.Observation) {
		if !o.Op.Reads() && o.Err == nil {
			h.readers.glance(rt, inner)
		}
	}), nil)
	h.shake()
	h.takeOver(rt)
	return h
}

// shake lets calls go wrong now and then, but never for good.
func (h *history) shake() {
	h.seeds++
	h.table.SetPlan(tabletest.RandomPlan(h.seeds, h.rates))
}

// takeOver makes a new gateway the owner, after sealing the last one.
func (h *history) takeOver(rt *rapid.T) {
	ctx := rt.Context()
	h.owners++
	journal, err := metadata.OpenJournal(ctx, h.table, metadata.GatewayID(fmt.Sprintf("g%03d", h.owners)))
	if err != nil {
		rt.Fatalf("open: %v", err)
	}
	// Its journal has moved on with other partitions' entries before it takes this one.
	for range rapid.IntRange(0, 2).Draw(rt, "before") {
		if _, err := journal.Append(ctx, metadata.NewEntryBuilder(time.Now()).Encode()); err != nil {
			rt.Fatalf("append: %v", err)
		}
	}
	state, lease, err := metadata.Acquire(ctx, metadata.Retry(h.table, nil), h.id, journal, h.sealed)
	if err != nil {
		rt.Fatalf("acquire: %v", err)
	}
	h.owner = owner{journal, state, lease}
	h.did["takeovers"]++
}

func (h *history) sealed(ctx context.Context, id metadata.GatewayID) (*metadata.SealedJournal, error) {
	t := metadata.Retry(h.table, nil)
	if _, err := metadata.Seal(ctx, t, id, h.owner.journal.ID()); err != nil {
		return nil, err
	}
	return metadata.ReadSealed(ctx, t, id)
}

func drawBatch(rt *rapid.T, m *model, position int64) metadata.Batch {
	b := metadata.Batch{Position: position, Size: int32(rapid.IntRange(61, 400).Draw(rt, "size")),
		Offsets: int32(rapid.IntRange(1, 5).Draw(rt, "offsets")), CRC: rapid.Uint32().Draw(rt, "crc"),
		MinTimestamp: rapid.Int64Range(0, 50).Draw(rt, "min"), ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}
	b.LastTimestamp = b.MinTimestamp + rapid.Int64Range(0, 9).Draw(rt, "last")
	b.MaxTimestamp = b.LastTimestamp + rapid.Int64Range(0, 9).Draw(rt, "max")
	b.Records = b.Offsets
	switch rapid.IntRange(0, 9).Draw(rt, "condition") {
	case 0:
		b.ExpectedOffset = m.next + rapid.Int64Range(-1, 1).Draw(rt, "expected")
	case 1:
		b.FencingToken, b.HasFencingToken = rapid.SampledFrom([]string{"", "a", "b"}).Draw(rt, "token"), true
	}
	if rapid.Bool().Draw(rt, "idempotent") {
		drawProducer(rt, m, &b)
	}
	return b
}

func drawProducer(rt *rapid.T, m *model, b *metadata.Batch) {
	b.ProducerID = rapid.Int64Range(0, 6).Draw(rt, "producer")
	p := m.producers[b.ProducerID]
	if rapid.IntRange(0, 3).Draw(rt, "wide") == 0 {
		b.Offsets = 1 << 30 // so that sequences wrap
		b.Records = b.Offsets
	}
	if p == nil {
		b.BaseSequence = int32(rapid.SampledFrom([]int{0, 0, 0, 7}).Draw(rt, "sequence"))
		b.ProducerEpoch = int16(rapid.IntRange(0, 2).Draw(rt, "epoch"))
		return
	}
	last := p.log[len(p.log)-1].batch
	b.ProducerEpoch = p.epoch
	b.BaseSequence = int32((int64(last.BaseSequence) + int64(last.Offsets)) & 0x7fffffff)
	switch rapid.IntRange(0, 9).Draw(rt, "how") {
	case 0:
		b.BaseSequence = rapid.Int32Range(0, 1<<31-1).Draw(rt, "sequence")
	case 1:
		b.BaseSequence = (b.BaseSequence + 1) & 0x7fffffff
	case 2, 3: // sent again
		again := p.log[rapid.IntRange(0, len(p.log)-1).Draw(rt, "again")].batch
		b.BaseSequence, b.Offsets, b.Records = again.BaseSequence, again.Offsets, again.Records
	case 4:
		b.ProducerEpoch += int16(rapid.SampledFrom([]int{-1, 1, 1}).Draw(rt, "epoch"))
		b.BaseSequence = int32(rapid.SampledFrom([]int{0, 0, 3}).Draw(rt, "sequence"))
	}
}

// drawReference is a new one, one that comes again, one that waits, or one by number.
func (h *history) drawReference(rt *rapid.T) *metadata.Reference {
	u := metadata.GatewayID(rapid.SampledFrom([]string{"u1", "u2", "u3"}).Draw(rt, "uploader"))
	if sent := h.sent[u]; len(sent) > 0 && rapid.IntRange(0, 4).Draw(rt, "again") == 0 {
		return sent[max(0, len(sent)-rapid.IntRange(1, 20).Draw(rt, "back"))]
	}
	h.high[u] += uint64(rapid.IntRange(1, 3).Draw(rt, "skip"))
	ref := &metadata.Reference{Partition: h.id, Uploader: u, Number: h.high[u], Previous: h.model.lastNumber(u)}
	switch rapid.IntRange(0, 9).Draw(rt, "chain") {
	case 0:
		ref.Previous++
	case 1:
		ref.Previous, ref.ByNumber = 0, true
	}
	position := int64(rapid.IntRange(0, 1000).Draw(rt, "position"))
	ahead := h.model.clone()
	for range rapid.IntRange(0, 8).Draw(rt, "batches") {
		b := drawBatch(rt, ahead, position)
		ahead.batch(b)
		ref.Batches = append(ref.Batches, b)
		position += int64(b.Size) + int64(rapid.SampledFrom([]int{0, 0, 0, 10}).Draw(rt, "hole"))
	}
	h.sent[u] = append(h.sent[u], ref)
	return ref
}

// cycle is one journal entry with some references, judged like the model judges them.
func (h *history) cycle(rt *rapid.T) {
	entry := metadata.NewEntryBuilder(time.Now())
	for range rapid.IntRange(1, 3).Draw(rt, "references") {
		ref := h.drawReference(rt)
		got, change := h.owner.state.Judge(ref)
		want := h.model.refer(ref)
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("%+v\nverdict (-model +got):\n%s", ref, diff)
		}
		if (change != nil) != (want.Status == metadata.Judged) {
			rt.Fatalf("a change %v with status %v", change, want.Status)
		}
		for _, v := range got.Batches {
			h.did[v.Outcome.String()]++
		}
		h.did[fmt.Sprintf("status %d", got.Status)]++
		h.apply(rt, entry, change)
	}
	h.commit(rt, entry)
}

func (h *history) apply(rt *rapid.T, entry *metadata.EntryBuilder, change *metadata.Change) {
	if change == nil {
		return
	}
	if err := h.owner.state.Apply(change, h.owner.journal.Next()); err != nil {
		rt.Fatalf("apply: %v", err)
	}
	entry.Add(change)
}

func (h *history) commit(rt *rapid.T, entry *metadata.EntryBuilder) {
	if entry.Len() == 0 {
		return
	}
	h.shake()
	h.readers.decided(h.owner.state.View())
	if _, err := h.owner.journal.Append(rt.Context(), entry.Encode()); err != nil {
		rt.Fatalf("append: %v", err)
	}
	h.readers.settled()
}

func (h *history) trim(rt *rapid.T) {
	to := rapid.Int64Range(h.model.start, h.model.next).Draw(rt, "to")
	change, err := h.owner.state.JudgeTrim(to)
	if err != nil {
		rt.Fatalf("trim: %v", err)
	}
	entry := metadata.NewEntryBuilder(time.Now())
	h.apply(rt, entry, change)
	h.commit(rt, entry)
	h.model.start = to
}

// fence sets a token, maybe on conditions that do not hold.
func (h *history) fence(rt *rapid.T) {
	tokens := rapid.SampledFrom([]string{"", "a", "b"})
	token, was := tokens.Draw(rt, "fence"), h.model.fence
	var current *string
	var expected *int64
	if rapid.Bool().Draw(rt, "with current") {
		c := tokens.Draw(rt, "current")
		current = &c
	}
	if rapid.Bool().Draw(rt, "with expected") {
		e := h.model.next + rapid.SampledFrom([]int64{0, 0, 0, -1, 1}).Draw(rt, "expected")
		expected = &e
	}
	change, err := h.owner.state.JudgeFence(token, current, expected)
	ok := token == was || (current == nil || *current == was) && (expected == nil || *expected == h.model.next)
	var conflict *metadata.FenceConflict
	switch {
	case ok && err != nil || !ok && !errors.As(err, &conflict) || (change != nil) != (ok && token != was):
		rt.Fatalf("fence %q over %q: %v %v", token, was, change, err)
	case !ok:
		if *conflict != (metadata.FenceConflict{Token: was, Next: h.model.next}) {
			rt.Fatalf("fence: %v, the token is %q and the next offset %d", conflict, was, h.model.next)
		}
		h.did["fence refused"]++
		return
	}
	h.model.fence = token
	entry := metadata.NewEntryBuilder(time.Now())
	h.apply(rt, entry, change)
	h.commit(rt, entry)
	if got := h.owner.state.Fence(); got != token {
		rt.Fatalf("the token is %q, was set to %q", got, token)
	}
}

func (h *history) checkpoint(rt *rapid.T) {
	h.shake()
	plan := h.owner.state.Checkpoint(h.owner.lease, h.owner.journal.Next()-1, false)
	if err := plan.Write(rt.Context(), metadata.Retry(h.table, nil), h.owner.lease); err != nil {
		rt.Fatalf("checkpoint: %v", err)
	}
	h.owner.state.Done(plan)
	h.did["checkpoints"]++
	if rapid.Bool().Draw(rt, "clean") {
		if err := plan.Clean(rt.Context(), h.table); err != nil && !errors.Is(err, tabletest.ErrInjected) {
			rt.Fatalf("clean: %v", err)
		}
	}
	if rapid.Bool().Draw(rt, "trim") {
		if through := h.owner.journal.Next() - 1; through > 1 {
			h.trimJournal(rt, min(h.owner.lease.Through, through-1))
		}
		if rapid.Bool().Draw(rt, "others") {
			h.othersOnly(rt)
		}
	}
}

// othersOnly commit to the journal and checkpoint, so that it is trimmed behind the back of
// the partition, whose lease row has all of it.
func (h *history) othersOnly(rt *rapid.T) {
	if h.owner.state.Unfolded() != 0 {
		return
	}
	for range rapid.IntRange(1, 3).Draw(rt, "entries") {
		if _, err := h.owner.journal.Append(rt.Context(), metadata.NewEntryBuilder(time.Now()).Encode()); err != nil {
			rt.Fatalf("append: %v", err)
		}
	}
	if next := h.owner.journal.Next(); next > 2 {
		h.trimJournal(rt, next-2)
		h.did["trimmed by others"]++
	}
}

func (h *history) trimJournal(rt *rapid.T, through uint64) {
	err := metadata.TrimJournal(rt.Context(), metadata.Retry(h.table, nil), h.owner.journal.ID(), through)
	if err != nil && !errors.Is(err, tabletest.ErrInjected) {
		rt.Fatalf("trim journal: %v", err)
	}
}

// cutShort fails a checkpoint for good at any of its writes.
func (h *history) cutShort(rt *rapid.T) {
	plan := h.owner.state.Checkpoint(h.owner.lease, h.owner.journal.Next()-1, false)
	after := rapid.IntRange(0, plan.Before()).Draw(rt, "after")
	h.cut(rt, after)
	ctx, cancel := context.WithTimeout(rt.Context(), time.Second)
	defer cancel()
	err := plan.Write(ctx, h.table, h.owner.lease)
	if err == nil {
		rt.Fatalf("the checkpoint was not cut short")
	}
	h.shake()
	h.did["cut short"]++
	h.owner.state.Undone(plan)
	if after == plan.Before() && errors.Is(err, metadata.ErrUnknown) {
		h.did["lease in doubt"]++
		h.die(rt)
	}
}

// die lets another gateway take over; what was remembered must stay.
func (h *history) die(rt *rapid.T) {
	was := h.owner
	for range rapid.IntRange(0, 2).Draw(rt, "half") {
		h.halfTakeOver(rt)
	}
	h.read(rt)
	h.shake()
	h.takeOver(rt)
	if diff := cmp.Diff(was.state.Memory(), h.owner.state.Memory()); diff != "" {
		rt.Fatalf("takeover (-before +after):\n%s", diff)
	}
	if h.owner.state.Epoch() <= was.state.Epoch() {
		rt.Fatalf("epoch %d after %d", h.owner.state.Epoch(), was.state.Epoch())
	}
	h.zombies = append(h.zombies, was)
}

// read is a reader without the partition: it finds all that was committed.
func (h *history) read(rt *rapid.T) {
	lease, err := h.readLease(rt)
	if err != nil {
		rt.Fatalf("lease: %v", err)
	}
	if lease.Released {
		return
	}
	from, err := h.sealed(rt.Context(), lease.Source())
	if err != nil {
		rt.Fatalf("sealed: %v", err)
	}
	view, err := lease.Folded(from)
	if err != nil || view.Next != h.model.next || view.Start != h.model.start {
		rt.Fatalf("a reader finds %+v %v, the log goes from %d to %d", view, err, h.model.start, h.model.next)
	}
	if _, err := lease.Folded(&metadata.SealedJournal{ID: "else"}); !errors.Is(err, metadata.ErrIndexMoved) {
		rt.Fatalf("folded the journal of another: %v", err)
	}
}

// halfTakeOver is a gateway that dies while it takes over.
func (h *history) halfTakeOver(rt *rapid.T) {
	h.table.SetPlan(nil)
	h.owners++
	journal, err := metadata.OpenJournal(rt.Context(), h.table, metadata.GatewayID(fmt.Sprintf("g%03d", h.owners)))
	if err != nil {
		rt.Fatalf("open: %v", err)
	}
	h.cut(rt, rapid.IntRange(0, 6).Draw(rt, "after"))
	ctx, cancel := context.WithTimeout(rt.Context(), time.Second)
	defer cancel()
	if _, _, err := metadata.Acquire(ctx, h.table, h.id, journal, h.sealed); err != nil {
		h.did["half takeovers"]++
		if row, err := h.readLease(rt); err == nil && row.Source() != row.Journal {
			h.did["based"]++
		}
		if rapid.Bool().Draw(rt, "not dead yet") {
			h.retakeOver(rt, journal)
		}
	}
}

// retakeOver is the same gateway trying again.
func (h *history) retakeOver(rt *rapid.T, journal *metadata.Journal) {
	was := h.owner
	h.shake()
	state, lease, err := metadata.Acquire(rt.Context(), metadata.Retry(h.table, nil), h.id, journal, h.sealed)
	if err != nil {
		rt.Fatalf("acquire at last: %v", err)
	}
	if diff := cmp.Diff(was.state.Memory(), state.Memory()); diff != "" {
		rt.Fatalf("second try (-before +after):\n%s", diff)
	}
	h.owner = owner{journal, state, lease}
	h.did["second tries"]++
}

func (h *history) readLease(rt *rapid.T) (*metadata.Lease, error) {
	h.table.SetPlan(nil)
	return metadata.ReadLease(rt.Context(), h.table, h.id, metadata.Strong)
}

// cut fails every call from the put after so many on, for good.
func (h *history) cut(rt *rapid.T, after int) {
	kind := rapid.SampledFrom([]tabletest.FaultKind{tabletest.Unavailable, tabletest.LostAnswer, tabletest.Vanished, tabletest.Late}).Draw(rt, "kind")
	puts := 0
	h.table.SetPlan(func(c tabletest.Call) tabletest.Fault {
		if c.Op == metadata.OpPut {
			puts++
		}
		switch {
		case puts <= after:
			return tabletest.Fault{}
		case c.Op == metadata.OpPut:
			return tabletest.Fault{Kind: kind}
		}
		return tabletest.Fault{Kind: tabletest.Unavailable}
	})
}

// release leaves in good order, and comes back or not.
func (h *history) release(rt *rapid.T) {
	h.shake()
	was, ctx := h.owner, rt.Context()
	plan := was.state.Checkpoint(was.lease, was.journal.Next()-1, true)
	if err := plan.Write(ctx, metadata.Retry(h.table, nil), was.lease); err != nil {
		rt.Fatalf("release: %v", err)
	}
	was.state.Done(plan)
	if rapid.Bool().Draw(rt, "comes back") {
		state, lease, err := metadata.Acquire(ctx, metadata.Retry(h.table, nil), h.id, was.journal, h.sealed)
		if err != nil {
			rt.Fatalf("acquire again: %v", err)
		}
		h.owner.state, h.owner.lease = state, lease
		if lease.Epoch() <= was.state.Epoch() {
			rt.Fatalf("epoch %d after a release in epoch %d", lease.Epoch(), was.state.Epoch())
		}
	} else {
		h.takeOver(rt)
	}
	if diff := cmp.Diff(was.state.Memory(), h.owner.state.Memory()); diff != "" {
		rt.Fatalf("release (-before +after):\n%s", diff)
	}
	h.did["releases"]++
}

// forget lets the owner drop the state and acquire it again, its journal unsealed.
func (h *history) forget(rt *rapid.T) {
	h.checkpoint(rt)
	before := h.owner.state.Memory()
	state, lease, err := metadata.Acquire(rt.Context(), metadata.Retry(h.table, nil), h.id, h.owner.journal, h.sealed)
	if err != nil {
		rt.Fatalf("acquire own: %v", err)
	}
	h.owner.state, h.owner.lease = state, lease
	if diff := cmp.Diff(before, state.Memory()); diff != "" {
		rt.Fatalf("forgotten (-before +after):\n%s", diff)
	}
}

// haunt lets a gateway that was fenced try to go on.
func (h *history) haunt(rt *rapid.T) {
	if len(h.zombies) == 0 {
		return
	}
	h.shake()
	z := rapid.SampledFrom(h.zombies).Draw(rt, "zombie")
	entry := metadata.NewEntryBuilder(time.Now())
	if _, err := z.journal.Append(rt.Context(), entry.Encode()); !errors.Is(err, metadata.ErrFenced) {
		rt.Fatalf("an append after the seal: %v", err)
	}
	plan := z.state.Checkpoint(z.lease, z.journal.Next()-1, false)
	if err := plan.Write(rt.Context(), metadata.Retry(h.table, nil), z.lease); err == nil {
		rt.Fatalf("a checkpoint of %s after epoch %d began", z.journal.ID(), h.owner.state.Epoch())
	}
	z.state.Undone(plan)
	h.did["haunted"]++
}

// check looks at the invariants: the index tiles the log, sums balance, and readers
// find each batch where it was put.
func (h *history) check(rt *rapid.T) {
	state := h.owner.state
	view := state.View()
	if view.Next != h.model.next || view.Start != h.model.start {
		rt.Fatalf("the log goes from %d to %d, the model's from %d to %d", view.Start, view.Next, h.model.start, h.model.next)
	}
	entries, err := view.AllEntries(rt.Context(), metadata.TableIndex{Table: metadata.Retry(h.table, nil)})
	if err != nil {
		rt.Fatalf("index: %v", err)
	}
	at, sum, bytes := view.Next, uint64(0), int64(0)
	if len(entries) > 0 {
		at = entries[0].First
	}
	if at > view.Start {
		rt.Fatalf("the index begins at %d, the log at %d", at, view.Start)
	}
	next := 0
	for next < len(h.model.log) && h.model.log[next].offset < at {
		next++
	}
	for _, e := range entries {
		want, position := uint64(0), e.Position
		if e.First != at {
			rt.Fatalf("an entry begins at %d, the last ended at %d", e.First, at)
		}
		for ; next < len(h.model.log) && h.model.log[next].offset < e.End; next++ {
			l := h.model.log[next]
			want += metadata.BatchSum(&l.batch, l.offset)
			if l.batch.Position != position {
				rt.Fatalf("entry %+v has batch %+v at %d", e, l.batch, position)
			}
			position += int64(l.batch.Size)
			if l.batch.MaxTimestamp > e.MaxTimestamp || l.batch.MinTimestamp < e.MinTimestamp {
				rt.Fatalf("entry %+v does not bound batch %+v", e, l.batch)
			}
		}
		if want != e.Sum || position != e.Position+e.Length {
			rt.Fatalf("entry %+v: sum %x up to byte %d, want %x", e, e.Sum, position, want)
		}
		at, sum, bytes = e.End, sum+e.Sum, bytes+e.Length
	}
	if at != view.Next {
		rt.Fatalf("the index ends at %d, the log at %d", at, view.Next)
	}
	if sum != state.ContentSum() || bytes != view.Bytes {
		rt.Fatalf("sum %x and %d bytes, the index has %x and %d", state.ContentSum(), view.Bytes, sum, bytes)
	}
	h.did["height"] = max(h.did["height"], view.Height())
	h.readers.check(rt, metadata.Retry(h.table, nil), view, entries, h.did)
}

// readBetween reads the partition from the table while its life goes on between the reads.
func (h *history) readBetween(rt *rapid.T) {
	actions := []func(*rapid.T){h.cycle, h.checkpoint, h.die, h.release, h.trim, h.fence, h.othersOnly, h.othersOnly, h.swap}
	left := rapid.IntRange(1, 6).Draw(rt, "meanwhile")
	h.meanwhile = func() {
		if left > 0 && rapid.Bool().Draw(rt, "now") {
			left--
			rapid.SampledFrom(actions).Draw(rt, "what")(rt)
		}
	}
	defer func() { h.meanwhile = nil }()
	table := metadata.Observe(shortPages{metadata.Retry(h.table, nil)}, func(metadata.Observation) {
		if h.meanwhile != nil {
			h.meanwhile()
		}
	})
	if h.shared == nil {
		h.shared = metadata.NewJournals(table).OneAtATime()
	}
	least, calls := h.readers.committed, h.table.Calls()
	var view *metadata.View
	var err error
	if rapid.Bool().Draw(rt, "shared") {
		view, _, err = h.shared.View(rt.Context(), h.id)
	} else {
		view, err = metadata.ReadView(rt.Context(), table, h.id)
	}
	if err != nil {
		rt.Fatalf("read: %v", err)
	}
	h.readers.hold(rt, view, least)
	if h.table.Calls() > calls {
		h.did["read between"]++
	}
}

// TestHistory is the sequencer's whole life without its goroutines.
func TestHistory(t *testing.T) {
	metadata.ShrinkLimits(t, 4, 3, 4, 2, 128)
	did := map[string]int{}
	checkInBubble(t, func(rt *rapid.T) {
		h := newHistory(rt, did)
		actions := map[string]func(*rapid.T){
			"cycle": h.cycle, "cycle again": h.cycle, "cycle and again": h.cycle, "trim": h.trim, "fence": h.fence,
			"checkpoint": h.checkpoint, "cut short": h.cutShort, "die": h.die, "release": h.release, "forget": h.forget,
			"haunt": h.haunt, "swap": h.swap, "late swap": h.lateSwap, "read between": h.readBetween, "late": func(*rapid.T) { h.did["late"] += h.table.Release() },
			"": h.check,
		}
		for range 4 {
			rt.Repeat(actions)
		}
		for kind, n := range h.table.Fired() {
			did["fault "+kind.String()] += n
		}
	})
	t.Log(did)
	for _, must := range []string{"accepted", "duplicate", "duplicate-forgotten", "offset-mismatch", "fence-mismatch", "sequence-gap",
		"producer-fenced", "unknown-producer", "status 2", "status 3", "takeovers", "cut short", "lease in doubt", "releases", "half takeovers", "based", "second tries",
		"haunted", "late", "read between", "trimmed by others", "fence refused", "followed", "swapped on level -1", "swapped on level 0", "swapped on level 1", "late swap taken", "late swap refused", "sent whole", "fault lost answer", "fault vanished", "fault late"} {
		if did[must] == 0 {
			t.Errorf("%s never happened", must)
		}
	}
	if did["height"] < 2 {
		t.Errorf("the index never had a level of nodes")
	}
}
