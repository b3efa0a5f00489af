package metadata_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/metadata/tabletest"
)

// One test for each interleaving that an odd-looking rule of the design exists for. The
// histories meet them too; here each is spelled out.

// arrive makes a gateway that has the partition.
func arrive(t *testing.T, table metadata.Table, id metadata.GatewayID) *owner {
	t.Helper()
	o := &owner{journal: openJournal(t, table, id)}
	o.acquire(t, table)
	return o
}

func (o *owner) acquire(t *testing.T, table metadata.Table) {
	t.Helper()
	var err error
	if o.state, o.lease, err = metadata.Acquire(t.Context(), table, timelinePartition, o.journal, sealer(table)); err != nil {
		t.Fatal(err)
	}
}

// decide commits a change in an entry of its own.
func (o *owner) decide(t *testing.T, change *metadata.Change) {
	t.Helper()
	if change == nil {
		return
	}
	if err := o.state.Apply(change, o.journal.Next()); err != nil {
		t.Fatal(err)
	}
	if _, err := o.journal.Append(t.Context(), entryOf(change)); err != nil {
		t.Fatal(err)
	}
}

func entryOf(change *metadata.Change) []byte {
	b := metadata.NewEntryBuilder(time.UnixMilli(0))
	b.Add(change)
	return b.Encode()
}

func (o *owner) refer(t *testing.T, ref *metadata.Reference) metadata.Verdict {
	t.Helper()
	v, change := o.state.Judge(ref)
	o.decide(t, change)
	return v
}

func (o *owner) checkpoint(t *testing.T, table metadata.Table, release bool) {
	t.Helper()
	plan := o.state.Checkpoint(o.lease, o.journal.Next()-1, release)
	if err := plan.Write(t.Context(), table, o.lease); err != nil {
		t.Fatal(err)
	}
	o.state.Done(plan)
}

func outcomes(v metadata.Verdict) []metadata.Outcome {
	var list []metadata.Outcome
	for _, b := range v.Batches {
		list = append(list, b.Outcome)
	}
	return list
}

// demand is a batch that must get the offset.
func demand(offset int64) metadata.Batch {
	b := plain()
	b.ExpectedOffset = offset
	return b
}

// firstOffsets reads where the index entries begin that readers of the table find.
func firstOffsets(t *testing.T, table metadata.Table) []int64 {
	t.Helper()
	v, err := metadata.ReadView(t.Context(), table, timelinePartition)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := v.AllEntries(t.Context(), metadata.TableIndex{Table: table})
	if err != nil {
		t.Fatal(err)
	}
	offsets := []int64{}
	for _, e := range entries {
		offsets = append(offsets, e.First)
	}
	return append(offsets, v.Next)
}

// TestHoleAfterTrimming: "the newest row and the seal are never deleted, otherwise a paused
// owner could write again past a hole".
func TestHoleAfterTrimming(t *testing.T) {
	table := memtable.New()
	paused := arrive(t, table, "g1")
	paused.refer(t, reference(1, plain()))
	_, change := paused.state.Judge(reference(2, plain())) // and then it is paused

	taker := arrive(t, table, "g2")
	taker.checkpoint(t, table, false)
	sealed, err := metadata.ReadSealed(t.Context(), table, "g1")
	if err != nil {
		t.Fatal(err)
	}
	if err := sealed.Trim(t.Context(), table); err != nil { // all that can go is gone
		t.Fatal(err)
	}
	if _, err := paused.journal.Append(t.Context(), entryOf(change)); !errors.Is(err, metadata.ErrFenced) {
		t.Errorf("the paused owner commits: %v", err)
	}
	if err := paused.journal.Verify(t.Context()); !errors.Is(err, metadata.ErrFenced) {
		t.Errorf("the paused owner may answer: %v", err)
	}
	// The same of an owner that lives: what it trims leaves its newest row.
	taker.refer(t, reference(2, plain()))
	taker.refer(t, reference(3, plain()))
	taker.checkpoint(t, table, false)
	if err := taker.journal.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := taker.journal.Append(t.Context(), entryOf(change)); !errors.Is(err, metadata.ErrFenced) {
		t.Errorf("commits after it left: %v", err)
	}
}

// TestAnswerFromAnUnsettledPut: "an ambiguous put is settled before anything builds on it:
// absent means it may still land, so try the same put until it, or something else, is there".
func TestAnswerFromAnUnsettledPut(t *testing.T) {
	for _, c := range []struct {
		name   string
		kind   tabletest.FaultKind
		fenced bool
	}{
		{"it happened, its answer was lost", tabletest.LostAnswer, false},
		{"it is on its way when the seal comes", tabletest.Late, true},
		{"it never happens and the seal comes", tabletest.Vanished, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inner := memtable.New()
				table := tabletest.NewFaulty(inner, nil)
				o := arrive(t, table, "g1")
				key, tries := metadata.JournalKey("g1", o.journal.Next()), 0
				table.SetPlan(func(call tabletest.Call) tabletest.Fault {
					switch {
					case call.Key != key:
					case call.Op == metadata.OpPut:
						if tries++; tries == 1 {
							return tabletest.Fault{Kind: c.kind}
						}
					case call.Op == metadata.OpGet && tries == 1: // the owner looks what came of it
						if _, err := metadata.Seal(context.Background(), inner, "g1", "g2"); err != nil {
							t.Error(err)
						}
					}
					return tabletest.Fault{}
				})
				_, change := o.state.Judge(reference(1, plain()))
				_, err := o.journal.Append(t.Context(), entryOf(change))
				if errors.Is(err, metadata.ErrFenced) != c.fenced || !c.fenced && err != nil {
					t.Fatalf("the owner is told %v", err)
				}
				table.Release()
				table.SetPlan(nil)
				want := []int64{0, 1}
				if c.fenced {
					want = []int64{0}
				}
				if got := firstOffsets(t, table); !slices.Equal(got, want) {
					t.Errorf("readers find %v, the owner was told %v", got, err)
				}
				taker := arrive(t, table, "g2")
				if next := taker.state.Next(); next != want[len(want)-1] {
					t.Errorf("the taker finds the end at %d, the owner was told %v", next, err)
				}
			})
		})
	}
}

// TestDuplicateFromFencedState: "a cycle of nothing but duplicates and retriable answers ends
// with a strong read that its next number holds no seal".
func TestDuplicateFromFencedState(t *testing.T) {
	table := memtable.New()
	paused := arrive(t, table, "g1")
	paused.refer(t, reference(1, idempotent(1, 0, 0)))
	if err := paused.journal.Verify(t.Context()); err != nil {
		t.Fatalf("nobody sealed: %v", err)
	}
	// Its successor commits what the paused owner will take for a gap.
	taker := arrive(t, table, "g2")
	taker.refer(t, reference(2, idempotent(1, 0, 1)))
	v, _ := paused.state.Judge(reference(3, idempotent(1, 0, 2)))
	if v.Status != metadata.Waiting {
		t.Fatalf("%+v", v)
	}
	if err := paused.journal.Verify(t.Context()); !errors.Is(err, metadata.ErrFenced) {
		t.Errorf("the paused owner may tell what it knows: %v", err)
	}
	// Having stepped back it finds the answers that count.
	if v := taker.refer(t, reference(3, idempotent(1, 0, 2))); !slices.Equal(outcomes(v), []metadata.Outcome{metadata.Accepted}) {
		t.Errorf("%+v", v)
	}
}

// TestRefusalJudgedAgainAfterTakeover: "every reference that advances an uploader's number goes
// into the entry, refused and void ones included".
func TestRefusalJudgedAgainAfterTakeover(t *testing.T) {
	for _, checkpointed := range []bool{false, true} {
		table := memtable.New()
		first := arrive(t, table, "g1")
		refused := reference(1, demand(1))
		if v := first.refer(t, refused); !slices.Equal(outcomes(v), []metadata.Outcome{metadata.OffsetMismatch}) {
			t.Fatalf("%+v", v)
		}
		first.refer(t, reference(2)) // void
		if checkpointed {
			first.checkpoint(t, table, false)
		}
		second := arrive(t, table, "g2")
		// The partition comes to where the refused batch would fit.
		second.refer(t, reference(3, plain()))
		v := second.refer(t, refused)
		if v.Status != metadata.Repeated || !slices.Equal(outcomes(v), []metadata.Outcome{metadata.OffsetMismatch}) || v.Batches[0].Actual != 0 {
			t.Errorf("checkpoint %v: what was refused is now %+v", checkpointed, v)
		}
		if v := second.refer(t, reference(2, plain())); v.Status != metadata.Repeated || len(v.Batches) != 0 {
			t.Errorf("checkpoint %v: what was void is now %+v", checkpointed, v)
		}
		if next := second.state.Next(); next != 1 {
			t.Errorf("checkpoint %v: the log ends at %d", checkpointed, next)
		}
	}
}

// TestPausedOwnersLatePage: "every put or delete of pages requires absence or a lower stamp: a
// paused owner's late page cannot overwrite". "A page found there is adopted only if its
// entries equal the fold's."
func TestPausedOwnersLatePage(t *testing.T) {
	metadata.ShrinkLimits(t, 4, 3, 10, 5, 100)
	synctest.Test(t, func(t *testing.T) {
		table := tabletest.NewFaulty(memtable.New(), nil)
		paused := arrive(t, table, "g1")
		for n := uint64(1); n <= 3; n++ {
			paused.refer(t, reference(n, plain()))
		}
		table.SetPlan(func(call tabletest.Call) tabletest.Fault {
			if call.Op == metadata.OpPut {
				return tabletest.Fault{Kind: tabletest.Late}
			}
			return tabletest.Fault{}
		})
		plan := paused.state.Checkpoint(paused.lease, paused.journal.Next()-1, false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := plan.Write(ctx, table, paused.lease); !errors.Is(err, metadata.ErrUnknown) {
			t.Fatalf("the page is not in doubt: %v", err)
		}
		paused.state.Undone(plan)
		table.SetPlan(nil)

		// The successor's page has the same first offset, and one entry more.
		taker := arrive(t, table, "g2")
		taker.refer(t, reference(4, plain()))
		taker.checkpoint(t, table, false)
		if table.Release() == 0 {
			t.Fatal("nothing was late")
		}
		if got, want := firstOffsets(t, table), []int64{0, 1, 2, 3, 4}; !slices.Equal(got, want) {
			t.Errorf("readers find entries at %v, want %v", got, want)
		}
		again := paused.state.Checkpoint(paused.lease, paused.journal.Next()-1, false)
		if err := again.Write(t.Context(), table, paused.lease); !errors.Is(err, metadata.ErrConflict) {
			t.Errorf("the paused owner's next try: %v", err)
		}
	})
}

// TestLeaseMovedAwayAndBack: "entries carry the epoch; folds skip other epochs", and the lease
// row is taken on its version.
func TestLeaseMovedAwayAndBack(t *testing.T) {
	table := memtable.New()
	first := arrive(t, table, "g1")
	first.refer(t, reference(1, plain()))
	moved := func(ctx context.Context, held metadata.GatewayID) (*metadata.SealedJournal, error) {
		// A slow taker has read the lease row. Now the partition goes to another and comes
		// back, under the same journal.
		first.checkpoint(t, table, true)
		second := arrive(t, table, "g2")
		second.refer(t, reference(2, plain()))
		second.checkpoint(t, table, true)
		first.acquire(t, table)
		first.refer(t, reference(3, plain()))
		return sealer(table)(ctx, held)
	}
	slow := openJournal(t, table, "g3")
	if _, _, err := metadata.Acquire(t.Context(), table, timelinePartition, slow, moved); !errors.Is(err, metadata.ErrConflict) {
		t.Errorf("the slow taker: %v", err)
	}
	if first.state.Epoch() != 3 {
		t.Errorf("epoch %d after two moves", first.state.Epoch())
	}
	state, lease, err := metadata.Acquire(t.Context(), table, timelinePartition, slow, sealer(table))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first.state.Memory(), state.Memory()); diff != "" || lease.Epoch() != 4 {
		t.Errorf("taken in epoch %d (-before +after):\n%s", lease.Epoch(), diff)
	}
	if got, want := firstOffsets(t, table), []int64{0, 1, 2, 3}; !slices.Equal(got, want) {
		t.Errorf("readers find entries at %v, want %v", got, want)
	}
}

// TestLateReference: "a reference whose number is not above the last is a duplicate and gets
// the first answer; one whose predecessor is not the last one waits".
func TestLateReference(t *testing.T) {
	table := memtable.New()
	o := arrive(t, table, "g1")
	one, two := reference(1, plain()), reference(2, plain())
	if v := o.refer(t, two); v.Status != metadata.Waiting || o.state.Next() != 0 {
		t.Fatalf("the second before the first: %+v", v)
	}
	o.refer(t, one)
	o.refer(t, two)
	o.refer(t, reference(3)) // given up, then it arrives after all
	o = arrive(t, table, "g2")
	for _, late := range []struct {
		ref  *metadata.Reference
		want []metadata.BatchVerdict
	}{
		{one, []metadata.BatchVerdict{{Outcome: metadata.Accepted, Offset: 0, Actual: metadata.NoOffset}}},
		{two, []metadata.BatchVerdict{{Outcome: metadata.Accepted, Offset: 1, Actual: metadata.NoOffset}}},
		{reference(3, plain()), nil},
	} {
		v := o.refer(t, late.ref)
		if diff := cmp.Diff(late.want, v.Batches); v.Status != metadata.Repeated || diff != "" {
			t.Errorf("number %d again: %+v\n%s", late.ref.Number, v, diff)
		}
	}
	if next := o.state.Next(); next != 2 {
		t.Errorf("the log ends at %d", next)
	}
}

// TestSkippedNumberInRecovery: "recovery submits under the old gateway id and number, judged by
// number alone: what they skip is void, a reference that had landed is recognised".
func TestSkippedNumberInRecovery(t *testing.T) {
	table := memtable.New()
	o := arrive(t, table, "g1")
	landed := reference(1, plain())
	o.refer(t, landed)
	o = arrive(t, table, "g2")
	recovered := reference(5, plain(), plain())
	recovered.Previous, recovered.ByNumber = 0, true
	again := *landed
	again.ByNumber = true
	if v := o.refer(t, &again); v.Status != metadata.Repeated || v.Batches[0].Offset != 0 {
		t.Errorf("what had landed: %+v", v)
	}
	if v := o.refer(t, recovered); v.Status != metadata.Judged || v.Batches[0].Offset != 1 {
		t.Errorf("what was in the buffer: %+v", v)
	}
	// A reference of a skipped number was still on its way.
	skipped := reference(3, plain())
	skipped.Previous = 1
	if v := o.refer(t, skipped); v.Status != metadata.Repeated || v.Batches != nil {
		t.Errorf("a skipped number: %+v", v)
	}
	if v := o.refer(t, recovered); v.Status != metadata.Repeated || v.Batches[0].Offset != 1 {
		t.Errorf("recovered twice: %+v", v)
	}
	if next := o.state.Next(); next != 3 {
		t.Errorf("the log ends at %d", next)
	}
}

// TestReadBesideTrim: "none is only said after an unchanged lease version". A reader has read the
// lease row; now all of the journal is checkpointed and trimmed, and it finds nothing there.
func TestReadBesideTrim(t *testing.T) {
	inner := memtable.New()
	o := arrive(t, inner, "g1")
	for n := uint64(1); n <= 4; n++ {
		o.refer(t, reference(n, plain()))
	}
	moved := false
	table := metadata.Observe(inner, func(call metadata.Observation) {
		if call.Op != metadata.OpGet || call.Key != metadata.LeaseKey(timelinePartition) || moved {
			return
		}
		moved = true
		o.checkpoint(t, inner, false)
		if err := metadata.TrimJournal(t.Context(), inner, "g1", 3); err != nil {
			t.Error(err)
		}
	})
	v, err := metadata.ReadView(t.Context(), table, timelinePartition)
	if err != nil || v.Next != 4 || !moved {
		t.Errorf("the reader finds the end at %+v: %v", v, err)
	}
}

// TestTakerWithAnOldRow: a taker reads the lease row; its owner, which lives after all, writes a checkpoint and
// trims its journal; the taker seals the journal. What it finds there does not follow on the row that it has.
func TestTakerWithAnOldRow(t *testing.T) {
	table := memtable.New()
	was := arrive(t, table, "g1")
	for n := range uint64(3) {
		was.refer(t, reference(n+1, plain()))
	}
	next := openJournal(t, table, "g2")
	meanwhile := func(ctx context.Context, id metadata.GatewayID) (*metadata.SealedJournal, error) {
		was.checkpoint(t, table, false)
		if err := metadata.TrimJournal(ctx, table, "g1", was.journal.Next()-2); err != nil {
			t.Fatal(err)
		}
		was.refer(t, reference(4, plain()))
		return sealer(table)(ctx, id)
	}
	if _, _, err := metadata.Acquire(t.Context(), table, timelinePartition, next, meanwhile); !errors.Is(err, metadata.ErrConflict) {
		t.Fatalf("got %v, want a conflict", err)
	}
	p, _, err := metadata.Acquire(t.Context(), table, timelinePartition, next, sealer(table))
	if err != nil || p.Next() != 4 {
		t.Fatalf("then %v, %v", p, err)
	}
}

// TestTrimCutShort: "trimmed-to rises before rows go": whoever folds a journal whose trim was cut
// short anywhere knows what is missing from it.
func TestTrimCutShort(t *testing.T) {
	for calls := 0; ; calls++ {
		inner := memtable.New()
		journal := openJournal(t, inner, "g1")
		for n := 1; n <= 5; n++ {
			if _, err := journal.Append(t.Context(), value(n)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := metadata.Seal(t.Context(), inner, "g1", "g2"); err != nil {
			t.Fatal(err)
		}
		made := 0
		table := tabletest.NewFaulty(inner, func(tabletest.Call) tabletest.Fault {
			if made++; made > calls {
				return tabletest.Fault{Kind: tabletest.Vanished}
			}
			return tabletest.Fault{}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := metadata.TrimJournal(ctx, table, "g1", 3)
		cancel()
		sealed, readErr := metadata.ReadSealed(t.Context(), inner, "g1")
		if readErr != nil || sealed.TrimmedTo+uint64(len(sealed.Rows))+1 != sealed.Seal {
			t.Errorf("cut short after %d calls: %v %+v", calls, readErr, sealed)
		}
		if err == nil {
			return
		}
	}
}

// cutPages is an index whose pages lack their last entries.
type cutPages struct{ metadata.TableIndex }

func (x cutPages) Page(ctx context.Context, p metadata.PartitionID, at metadata.RowPlace) ([]metadata.Entry, error) {
	entries, err := x.TableIndex.Page(ctx, p, at)
	return entries[:1], err
}

// TestShortPage: a page with the wrong extent is corruption, not a place where readers ask again for ever.
func TestShortPage(t *testing.T) {
	metadata.ShrinkLimits(t, 4, 3, 10, 5, 100)
	table := memtable.New()
	o := arrive(t, table, "g1")
	for n := uint64(1); n <= 3; n++ {
		o.refer(t, reference(n, plain()))
	}
	o.checkpoint(t, table, false)
	v := o.state.View()
	if list, err := v.Entries(t.Context(), metadata.TableIndex{Table: table}, 2); err != nil || len(list) != 1 {
		t.Fatalf("%v %v: this run proves nothing", list, err)
	}
	if list, err := v.Entries(t.Context(), cutPages{metadata.TableIndex{Table: table}}, 2); !errors.Is(err, metadata.ErrCorrupt) {
		t.Errorf("%v %v", list, err)
	}
}
