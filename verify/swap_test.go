package verify_test

import (
	"testing"
	"time"

	"github.com/varvelog/varve/metadata"
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
