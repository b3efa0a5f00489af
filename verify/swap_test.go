package verify_test

import (
	"slices"
	"testing"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/verify"
)

// TestRepairBesideSwap: a swap is decided, and settled for who asked for it, while only the journal names its pages: they are no
// garbage.
func TestRepairBesideSwap(t *testing.T) {
	f := newForge(t)
	ctx := t.Context()
	for range 70 {
		f.commit(f.segment(1, 0))
	}
	f.checkpoint(0, false)
	p := f.held(0)
	s := p.state.View().Sections()[0]
	entries, err := s.Load(ctx, metadata.TableIndex{Table: f.table})
	f.must(err)
	for i := range entries { // key compaction compared them, and nothing went
		entries[i].Clean = true
	}
	w, err := metadata.PrepareSwap(ctx, f.table, s, metadata.MergerID(f.gateway), 1, entries)
	f.must(err)
	w.Rewritten = true
	outcome, change, err := p.state.JudgeSwap(w)
	f.must(err)
	if outcome != metadata.Swapped {
		t.Fatal(outcome)
	}
	e := metadata.NewEntryBuilder(time.Now())
	f.apply(e, 0, change)
	_, err = f.journal.Append(ctx, e.Encode())
	f.must(err)
	g, err := metadata.DecodeGateway(f.row(f.gateway.RowKey()))
	f.must(err)
	g.MergeFloor, g.Floor = 2, 71
	f.must(g.Write(ctx, f.table))
	config := f.config()
	config.Repair = true
	if found, _ := f.run(config); len(found) > 0 {
		t.Errorf("%+v", found)
	}
	v, err := metadata.ReadView(ctx, f.table, f.id(0))
	f.must(err)
	if list, err := v.Entries(ctx, metadata.TableIndex{Table: f.table}, 0); err != nil || len(list) != 70 {
		t.Errorf("%d entries, %v", len(list), err)
	}
}

// TestSwapsInTheJournal: what a swap of the newest entries put in the place of others is held against its objects and counted as those were,
// wherever they are, and a batch that is damaged is named once.
func TestSwapsInTheJournal(t *testing.T) {
	for _, checkpointed := range []bool{false, true} {
		f := newForge(t)
		for range 12 {
			f.commit(f.segment(2, 0))
		}
		if checkpointed {
			f.checkpoint(0, false)
		}
		f.swapTail(0, 1, func(entries []metadata.Entry) {
			for i := range entries {
				entries[i].Clean = i < 4
			}
		})
		f.commit(f.segment(2, 0))
		f.swapTail(0, 2, func(entries []metadata.Entry) {
			for i := range entries {
				entries[i].Clean = true
			}
		})
		_, got := f.run(f.config())
		if got.Entries != 13 || got.Records != 26 || got.Batches != 13 {
			t.Errorf("checkpoint %v: %d entries, %d records, %d batches", checkpointed, got.Entries, got.Records, got.Batches)
		}
		f.expect(f.config())
		f.replaceObject(f.key(3), flip(16+61+10))
		f.expect(f.config(), verify.BatchCorrupt)
	}
}

// swapTail replaces the newest entries by what change makes of them.
func (f *forge) swapTail(partition int32, number uint64, change func([]metadata.Entry)) {
	f.t.Helper()
	ctx := f.t.Context()
	state := f.held(partition).state
	sections := state.View().Sections()
	s := sections[len(sections)-1]
	entries, err := s.Load(ctx, metadata.TableIndex{Table: f.table})
	f.must(err)
	entries = slices.Clone(entries)
	change(entries)
	w, err := metadata.PrepareSwap(ctx, f.table, s, metadata.MergerID(f.gateway), number, entries)
	f.must(err)
	w.Rewritten = true
	outcome, swapped, err := state.JudgeSwap(w)
	f.must(err)
	if outcome != metadata.Swapped {
		f.t.Fatal(outcome)
	}
	e := metadata.NewEntryBuilder(time.Now())
	f.apply(e, partition, swapped)
	_, err = f.journal.Append(ctx, e.Encode())
	f.must(err)
}
