package metadata_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/metadata/tabletest"
)

// swapAll prepares a swap of the whole index, in one section, by one entry.
func (o *owner) swapAll(t *testing.T, table metadata.Table, number uint64) *metadata.Swap {
	t.Helper()
	sections := o.state.View().Sections()
	if len(sections) != 1 {
		t.Fatalf("%d sections", len(sections))
	}
	s := sections[0]
	entries, err := s.Load(t.Context(), metadata.TableIndex{Table: table})
	if err != nil {
		t.Fatal(err)
	}
	is := metadata.Summarize(entries)
	merged := entries[0]
	merged.Gateway, merged.Number, merged.Position = metadata.MergerID("g1"), number, 16
	merged.End, merged.Records, merged.Length, merged.Sum, merged.Points = s.To, s.To-s.From, is.Bytes, is.Sum, nil
	merged.MinTimestamp, merged.MaxTimestamp, merged.LastTimestamp = is.MinTimestamp, is.MaxTimestamp, is.LastTimestamp
	w, err := metadata.PrepareSwap(t.Context(), table, s, merged.Gateway, number, []metadata.Entry{merged})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (o *owner) swap(t *testing.T, w *metadata.Swap) metadata.SwapOutcome {
	t.Helper()
	outcome, change, err := o.state.JudgeSwap(w)
	if err != nil {
		t.Fatal(err)
	}
	o.decide(t, change)
	return outcome
}

// TestSwapOfWhatMoved: of two swaps of the same entries one wins. The other one is void for ever, although it leaves records
// out and so no content sum could tell.
func TestSwapOfWhatMoved(t *testing.T) {
	table := memtable.New()
	o := arrive(t, table, "g1")
	o.refer(t, reference(1, plain()))
	o.refer(t, reference(2, plain()))
	first, second := o.swapAll(t, table, 1), o.swapAll(t, table, 2)
	second.Rewritten = true
	if got := o.swap(t, first); got != metadata.Swapped {
		t.Fatalf("first: %d", got)
	}
	if got := o.swap(t, second); got != metadata.SwapMoved {
		t.Errorf("second: %d", got)
	}
	taker := arrive(t, table, "g2")
	if got := taker.swap(t, second); got != metadata.SwapMoved {
		t.Errorf("the second, asked again of the next owner: %d", got)
	}
	if got := taker.swap(t, first); got != metadata.Swapped && got != metadata.SwapForgotten {
		t.Errorf("the first, asked again: %d", got)
	}
}

// TestSwapMustBalance: what merging leaves has the content of what it replaces.
func TestSwapMustBalance(t *testing.T) {
	table := memtable.New()
	o := arrive(t, table, "g1")
	o.refer(t, reference(1, plain()))
	for number, spoil := range []func(*metadata.Swap){
		func(w *metadata.Swap) { w.Entries[0].Sum++ },
		func(w *metadata.Swap) { w.Entries[0].End++ },
		func(w *metadata.Swap) { w.Entries[0].First-- },
		func(w *metadata.Swap) { w.To++ },
		func(w *metadata.Swap) { w.Level = 0 },
		func(w *metadata.Swap) { w.Identity++ },
		func(w *metadata.Swap) { w.Entries = nil },
		func(w *metadata.Swap) { w.Entries = append(w.Entries, w.Entries...) },
	} {
		w := o.swapAll(t, table, uint64(number+1))
		spoil(w)
		if got := o.swap(t, w); got != metadata.SwapMoved {
			t.Errorf("%d: %d", number, got)
		}
	}
	if got := o.swap(t, o.swapAll(t, table, 20)); got != metadata.Swapped {
		t.Errorf("unspoiled: %d", got)
	}
}

// TestSwapBesideCheckpoint: a checkpoint moves parts between levels. While one is being written, or may have been, a swap
// waits: a fold could find the parts elsewhere.
func TestSwapBesideCheckpoint(t *testing.T) { synctest.Test(t, swapBesideCheckpoint) }

func swapBesideCheckpoint(t *testing.T) {
	metadata.ShrinkLimits(t, 4, 2, 10, 5, 100)
	inner := memtable.New()
	table := tabletest.NewFaulty(inner, nil)
	o := arrive(t, table, "g1")
	o.refer(t, reference(1, plain()))
	o.refer(t, reference(2, plain()))
	w := o.swapAll(t, table, 1)
	plan := o.state.Checkpoint(o.lease, o.journal.Next()-1, false)
	if _, _, err := o.state.JudgeSwap(w); !errors.Is(err, metadata.ErrBusy) {
		t.Errorf("beside a checkpoint: %v", err)
	}
	lost := loseLease(table)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := plan.Write(ctx, table, o.lease); !errors.Is(err, metadata.ErrUnknown) {
		t.Fatalf("checkpoint: %v", err)
	}
	if !*lost {
		t.Fatal("no answer was lost")
	}
	o.state.Undone(plan)
	if _, _, err := o.state.JudgeSwap(w); !errors.Is(err, metadata.ErrBusy) {
		t.Errorf("after a checkpoint that may have been written: %v", err)
	}
	taker := arrive(t, inner, "g2")
	if got := taker.swap(t, w); got != metadata.SwapMoved {
		t.Errorf("the entries lie in a page by now: %d", got)
	}
}

// loseLease lets the next write of a lease row take effect and its answer be lost, and no read after it succeed.
func loseLease(table *tabletest.Faulty) *bool {
	lost := false
	table.SetPlan(func(c tabletest.Call) tabletest.Fault {
		switch {
		case c.Op == metadata.OpPut && c.Key.Sort == "lease" && !lost:
			lost = true
			return tabletest.Fault{Kind: tabletest.LostAnswer}
		case lost:
			return tabletest.Fault{Kind: tabletest.Unavailable}
		}
		return tabletest.Fault{}
	})
	return &lost
}

// TestSwapKeepsLevelsShort: a swap may not make a level longer than checkpoints keep it, whatever its pages come to: a lease row with too many
// children cannot be read.
func TestSwapKeepsLevelsShort(t *testing.T) {
	metadata.ShrinkLimits(t, 4, 1, 10, 5, 100)
	table := memtable.New()
	o := arrive(t, table, "g1")
	for n := range uint64(4) {
		o.refer(t, reference(2*n+1, plain()))
		o.refer(t, reference(2*n+2, plain()))
		o.checkpoint(t, table, false)
	}
	s := o.state.View().Sections()[0]
	if s.Level != 0 || len(s.Parts) != 4 {
		t.Fatalf("level %d with %d pages", s.Level, len(s.Parts))
	}
	s = s.Part(0, 1)
	entries, err := s.Load(t.Context(), metadata.TableIndex{Table: table})
	if err != nil {
		t.Fatal(err)
	}
	w, err := metadata.PrepareSwap(t.Context(), table, s, metadata.MergerID("g1"), 1, entries)
	if err != nil {
		t.Fatal(err)
	}
	first, second := metadata.Summarize(entries[:1]), metadata.Summarize(entries[1:])
	first.Row, second.Row = 1, 2 // two pages in place of one
	w.Children = []metadata.Child{first, second}
	if got := o.swap(t, w); got != metadata.SwapMoved {
		t.Errorf("five pages where four are the most: %d", got)
	}
}
