package metadata_test

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
)

// merging is a swap that was prepared, and what the model becomes by it.
type merging struct {
	*metadata.Swap
	positions map[int64]int64 // of batches that move, by offset
}

// drawSwap merges some neighbouring entries of some part of the index, nil when it has none.
func (h *history) drawSwap(rt *rapid.T) *merging {
	h.shake()
	table := metadata.Retry(h.table, nil)
	view := h.owner.state.View()
	sections := view.Sections()
	if len(sections) == 0 {
		return nil
	}
	s := rapid.SampledFrom(sections).Draw(rt, "section")
	i := rapid.IntRange(0, len(s.Parts)-1).Draw(rt, "from part")
	s = s.Part(i, rapid.IntRange(i+1, len(s.Parts)).Draw(rt, "to part"))
	entries, err := s.Load(rt.Context(), metadata.TableIndex{Table: table})
	if err != nil {
		rt.Fatalf("load: %v", err)
	}
	if sum := metadata.Summarize(entries); sum.Sum != s.Summary().Sum || sum.Bytes != s.Summary().Bytes || sum.Entries != s.Summary().Entries {
		rt.Fatalf("section %+v holds %+v", s.Summary(), sum)
	}
	number := h.high["merger"] + uint64(rapid.IntRange(1, 3).Draw(rt, "skip"))
	h.high["merger"] = number
	m := &merging{positions: make(map[int64]int64)}
	a := rapid.IntRange(0, len(entries)-1).Draw(rt, "first")
	b := rapid.IntRange(a+1, len(entries)).Draw(rt, "last")
	merged := slices.Concat(entries[:a], []metadata.Entry{h.merge(rt, m, entries[a:b], number)}, entries[b:])
	if m.Swap, err = metadata.PrepareSwap(rt.Context(), table, s, "merger", number, merged); err != nil {
		rt.Fatalf("prepare: %v", err)
	}
	decoded, err := metadata.DecodeSwap(h.id, m.Encode())
	if err != nil {
		rt.Fatalf("swap on the wire: %v", err)
	}
	m.Swap = decoded
	return m
}

// merge makes one entry of several.
func (h *history) merge(rt *rapid.T, m *merging, entries []metadata.Entry, number uint64) metadata.Entry {
	first, end := entries[0].First, entries[len(entries)-1].End
	var batches []metadata.Batch
	var offsets []int64
	position := int64(16)
	for _, l := range h.model.log {
		if l.offset >= first && l.offset < end {
			b := l.batch
			b.Position = position
			m.positions[l.offset] = position
			position += int64(b.Size)
			batches, offsets = append(batches, b), append(offsets, l.offset)
		}
	}
	if len(batches) == 0 {
		rt.Fatalf("no batch between %d and %d", first, end)
	}
	return metadata.MergedEntry("merger", number, batches, offsets, first, end)
}

// decideSwap has a swap judged and committed, twice.
func (h *history) decideSwap(rt *rapid.T, m *merging) metadata.SwapOutcome {
	outcome, change, err := h.owner.state.JudgeSwap(m.Swap)
	if err != nil {
		rt.Fatalf("swap: %v", err)
	}
	entry := metadata.NewEntryBuilder(time.Now())
	h.apply(rt, entry, change)
	h.commit(rt, entry)
	again, change, err := h.owner.state.JudgeSwap(m.Swap)
	if again != outcome && again != metadata.SwapForgotten || change != nil || err != nil {
		rt.Fatalf("swap %d, asked for again: %d %v %v", outcome, again, change, err)
	}
	if outcome == metadata.Swapped {
		h.did[fmt.Sprintf("swapped on level %d", m.Level)]++
		for i := range h.model.log {
			if position, moved := m.positions[h.model.log[i].offset]; moved {
				h.model.log[i].batch.Position = position
			}
		}
		found, err := h.owner.state.View().Names(rt.Context(), metadata.TableIndex{Table: metadata.Retry(h.table, nil)}, "merger", m.Number, m.From, m.To)
		if err != nil || !found && h.model.start <= m.From {
			rt.Fatalf("after the swap the index does not name its segment: %v", err)
		}
	}
	return outcome
}

// swap merges at once.
func (h *history) swap(rt *rapid.T) {
	if m := h.drawSwap(rt); m != nil {
		if outcome := h.decideSwap(rt, m); outcome != metadata.Swapped {
			rt.Fatalf("swap of what is there: %d", outcome)
		}
	}
}

// lateSwap asks for a swap when other things have happened since it was prepared.
func (h *history) lateSwap(rt *rapid.T) {
	m := h.drawSwap(rt)
	if m == nil {
		return
	}
	before := h.owner.state.View()
	for range rapid.IntRange(0, 3).Draw(rt, "meanwhile") {
		rapid.SampledFrom([]func(*rapid.T){h.cycle, h.trim, h.checkpoint, h.die, h.swap, h.release}).Draw(rt, "what")(rt)
	}
	if _, known := h.owner.state.LastNumber("merger"); known && h.high["merger"] != m.Number {
		return // a swap with a higher number was judged: the model does not know what came of this one
	}
	if outcome := h.decideSwap(rt, m); outcome == metadata.Swapped {
		h.did["late swap taken"]++
		if h.owner.state.Start() > before.Start && h.owner.state.Start() >= m.To {
			rt.Fatalf("a swap of what is gone")
		}
	} else {
		h.did["late swap refused"]++
		if _, err := h.owner.state.JudgeTrim(h.model.start); err != nil && !errors.Is(err, metadata.ErrBusy) {
			rt.Fatalf("after a swap that was refused: %v", err)
		}
	}
}
