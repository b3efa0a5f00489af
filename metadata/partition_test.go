package metadata_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/metadata"

	"github.com/varvelog/varve/metadata/tabletest"
)

// reference of plain batches, a record each.
func reference(number uint64, batches ...metadata.Batch) *metadata.Reference {
	ref := &metadata.Reference{Partition: timelinePartition, Uploader: "u", Number: number, Previous: number - 1}
	for i, b := range batches {
		b.Position, b.Size, b.Offsets, b.Records = int64(i)*100, 100, 1, 1
		ref.Batches = append(ref.Batches, b)
	}
	return ref
}

func plain() metadata.Batch {
	return metadata.Batch{ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}
}

func idempotent(id int64, epoch int16, sequence int32) metadata.Batch {
	return metadata.Batch{ProducerID: id, ProducerEpoch: epoch, BaseSequence: sequence, ExpectedOffset: metadata.NoOffset}
}

// TestKafkasRules spells the verdicts on an idempotent producer out.
func TestKafkasRules(t *testing.T) {
	l := newTimeline(t)
	number := uint64(0)
	for i, c := range []struct {
		batch   metadata.Batch
		outcome metadata.Outcome
		offset  int64
		actual  int64
	}{
		{idempotent(1, 0, 5), metadata.UnknownProducer, -1, -1},
		{idempotent(1, 0, 0), metadata.Accepted, 0, -1},
		{idempotent(1, 0, 0), metadata.Duplicate, 0, -1},
		{idempotent(1, 0, 2), metadata.SequenceGap, -1, 1},
		{idempotent(1, 0, 1), metadata.Accepted, 1, -1},
		{idempotent(1, 0, 2), metadata.Accepted, 2, -1},
		{idempotent(1, 0, 3), metadata.Accepted, 3, -1},
		{idempotent(1, 0, 4), metadata.Accepted, 4, -1},
		{idempotent(1, 0, 0), metadata.Duplicate, 0, -1},
		{idempotent(1, 0, 5), metadata.Accepted, 5, -1},
		{idempotent(1, 0, 0), metadata.DuplicateForgotten, -1, 6},
		{idempotent(1, 2, 6), metadata.SequenceGap, -1, 0},
		{idempotent(1, 2, 0), metadata.Accepted, 6, -1},
		{idempotent(1, 1, 0), metadata.ProducerFenced, -1, 2},
		{idempotent(1, 0, 6), metadata.ProducerFenced, -1, 2},
		{idempotent(2, 0, 0), metadata.Accepted, 7, -1},
	} {
		number++
		v, change := l.state.Judge(reference(number, c.batch))
		want := []metadata.BatchVerdict{{Outcome: c.outcome, Offset: c.offset, Actual: c.actual}}
		if diff := cmp.Diff(want, v.Batches); diff != "" {
			t.Fatalf("%d: %s", i, diff)
		}
		l.apply(t, change)
	}
}

// TestRetriedConditionIsNoFalseNo: the duplicate is recognised before its expected
// offset is looked at.
func TestRetriedConditionIsNoFalseNo(t *testing.T) {
	l := newTimeline(t)
	b := idempotent(1, 0, 0)
	b.ExpectedOffset = 0
	for number, want := range []metadata.Outcome{metadata.Accepted, metadata.Duplicate} {
		v, change := l.state.Judge(reference(uint64(number+1), b))
		if v.Batches[0].Outcome != want {
			t.Fatalf("%+v, want %s", v, want)
		}
		l.apply(t, change)
	}
}

func TestClosedPartition(t *testing.T) {
	l := newTimeline(t)
	l.append(t, 100, []int64{1})
	l.apply(t, l.state.JudgeClose())
	if v, change := l.state.Judge(reference(2, plain())); v.Status != metadata.Refused || change != nil {
		t.Errorf("%+v %v", v, change)
	}
	if change := l.state.JudgeClose(); change != nil {
		t.Errorf("closed twice: %v", change)
	}
	if change, err := l.state.JudgeFence("x", nil, nil); change != nil || !errors.Is(err, metadata.ErrClosed) {
		t.Errorf("fenced: %v %v", change, err)
	}
	if _, err := l.state.JudgeTrim(1); !errors.Is(err, metadata.ErrClosed) {
		t.Errorf("trim: %v", err)
	}
	l.checkpoint(t)
	lease, err := metadata.ReadLease(context.Background(), l.table, timelinePartition, metadata.Strong)
	if err != nil || !lease.View().Closed {
		t.Errorf("%+v %v", lease, err)
	}
}

func TestTrimLimits(t *testing.T) {
	l := newTimeline(t)
	l.append(t, 100, []int64{1, 2, 3})
	for _, bad := range []int64{-1, 4} {
		if _, err := l.state.JudgeTrim(bad); !errors.Is(err, metadata.ErrInvalid) {
			t.Errorf("trim to %d: %v", bad, err)
		}
	}
	plan := l.state.Checkpoint(l.lease, l.sequence, false)
	if _, err := l.state.JudgeTrim(1); !errors.Is(err, metadata.ErrBusy) {
		t.Errorf("trim during a checkpoint: %v", err)
	}
	l.state.Undone(plan)
	l.trim(t, 3)
	if change, err := l.state.JudgeTrim(2); change != nil || err != nil {
		t.Errorf("trim back: %v %v", change, err)
	}
}

// TestViewsStay: what a view shows does not change while the state moves on.
func TestViewsStay(t *testing.T) {
	metadata.ShrinkLimits(t, 3, 3, 10, 5, 100)
	l := newTimeline(t)
	type seen struct {
		view    *metadata.View
		entries []metadata.Entry
	}
	var views []seen
	index := metadata.TableIndex{Table: l.table}
	for n := range int64(60) {
		l.append(t, 100, []int64{n})
		if n%7 == 0 {
			l.checkpoint(t)
		}
		entries, err := l.state.View().AllEntries(t.Context(), index)
		if err != nil {
			t.Fatal(err)
		}
		views = append(views, seen{l.state.View(), entries})
	}
	for i, s := range views {
		entries, err := s.view.AllEntries(t.Context(), index)
		if diff := cmp.Diff(s.entries, entries); err != nil || diff != "" {
			t.Fatalf("view %d: %v %s", i, err, diff)
		}
	}
	// A trim removes pages under them: then they say so.
	l.trim(t, 50)
	l.checkpoint(t)
	if _, err := views[40].view.AllEntries(t.Context(), index); !errors.Is(err, metadata.ErrIndexMoved) {
		t.Errorf("a page that is gone: %v", err)
	}
	if rows, err := l.table.Range(t.Context(), metadata.Range{Partition: metadata.LeaseKey(timelinePartition).Partition}); err != nil || len(rows) > 12 {
		t.Errorf("%d rows of the partition are left: %v", len(rows), err)
	}
}

// TestForeignPage: a page of the same stamp with other entries is nobody's to adopt.
func TestForeignPage(t *testing.T) {
	metadata.ShrinkLimits(t, 3, 3, 10, 5, 100)
	l := newTimeline(t)
	for n := range int64(3) {
		l.append(t, 100, []int64{n})
	}
	plan := l.state.Checkpoint(l.lease, l.sequence, false)
	foreign := metadata.Row{Key: metadata.Key{Partition: metadata.LeaseKey(timelinePartition).Partition, Sort: "page/0000000000000000"},
		Stamp: metadata.Stamp{Epoch: 1, Sequence: l.sequence}, Nonce: 7, Value: []byte("else")}
	if err := l.table.Put(t.Context(), foreign, metadata.Condition{}); err != nil {
		t.Fatal(err)
	}
	if err := plan.Write(t.Context(), l.table, l.lease); !errors.Is(err, metadata.ErrConflict) {
		t.Fatalf("adopted: %v", err)
	}
	if lease, err := metadata.ReadLease(t.Context(), l.table, timelinePartition, metadata.Strong); err != nil || lease.View().Next != 0 {
		t.Errorf("the lease row says %+v %v", lease.View(), err)
	}
}

// TestCheckpointInDoubt: pages that a lease row may name are not overwritten.
func TestCheckpointInDoubt(t *testing.T) {
	metadata.ShrinkLimits(t, 3, 3, 10, 5, 100)
	l := newTimeline(t)
	faulty := tabletest.NewFaulty(l.table, nil)
	for n := range int64(3) {
		l.append(t, 100, []int64{n})
	}
	first := l.state.Checkpoint(l.lease, l.sequence, false)
	faulty.SetPlan(func(c tabletest.Call) tabletest.Fault {
		if c.Key.Sort == "lease" && c.Op == metadata.OpPut {
			return tabletest.Fault{Kind: tabletest.Late}
		}
		return tabletest.Fault{}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := first.Write(ctx, faulty, l.lease); !errors.Is(err, metadata.ErrUnknown) {
		t.Fatal(err)
	}
	faulty.SetPlan(nil)
	l.state.Undone(first)
	l.append(t, 100, []int64{9})
	second := l.state.Checkpoint(l.lease, l.sequence, false)
	if err := second.Write(t.Context(), faulty, l.lease); !errors.Is(err, metadata.ErrConflict) {
		t.Fatalf("another checkpoint while one is in doubt: %v", err)
	}
	faulty.Release()
	lease, err := metadata.ReadLease(t.Context(), faulty, timelinePartition, metadata.Strong)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := lease.View().AllEntries(t.Context(), metadata.TableIndex{Table: faulty})
	if err != nil || len(entries) != 3 || lease.View().Next != 3 {
		t.Fatalf("%d entries up to %d: %v", len(entries), lease.View().Next, err)
	}
	if err := first.Write(t.Context(), faulty, l.lease); err != nil { // the same one settles
		t.Fatal(err)
	}
}

// TestFoldSkipsOtherEpochs: entries of a time before the partition left and came back
// are not folded twice.
func TestFoldSkipsOtherEpochs(t *testing.T) {
	l := newTimeline(t)
	_, change := l.state.Judge(reference(1, plain()))
	foreign := *change
	foreign.Epoch++
	journal := &metadata.SealedJournal{ID: "g1", Rows: []metadata.JournalRow{
		{Sequence: 1, Changes: []metadata.Change{foreign}}, {Sequence: 2, Changes: []metadata.Change{*change}}}}
	if err := metadata.Fold(l.state, 0, journal); err != nil || l.state.Next() != 1 {
		t.Fatalf("%v, next %d", err, l.state.Next())
	}
	if err := metadata.Fold(l.state, 2, journal); err != nil || l.state.Next() != 1 { // a checkpoint has it
		t.Fatalf("%v, next %d", err, l.state.Next())
	}
	if err := metadata.Fold(l.state, 0, journal); !errors.Is(err, metadata.ErrCorrupt) {
		t.Errorf("folded twice: %v", err)
	}
}

// TestDue: enough entries for a page ask for a checkpoint.
func TestDue(t *testing.T) {
	metadata.ShrinkLimits(t, 4, 3, 10, 5, 100)
	l := newTimeline(t)
	for n := range int64(4) {
		if l.state.Due() {
			t.Fatalf("due after %d", n)
		}
		l.append(t, 100, []int64{n})
	}
	if !l.state.Due() {
		t.Fatal("not due")
	}
	plan := l.state.Checkpoint(l.lease, l.sequence, false)
	if l.state.Due() {
		t.Error("due while a checkpoint is being written")
	}
	l.state.Undone(plan)
	l.checkpoint(t)
	if l.state.Due() || l.state.Unfolded() != 0 {
		t.Error("due after a checkpoint")
	}
}
