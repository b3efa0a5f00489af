package compactor

import (
	"context"
	"fmt"
	"math/rand"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments/batch"
)

// merging merges a few neighbouring entries as a compactor does. Their swap is what comes back, nil: there is nothing to merge.
func (l *keyLog) merging(r *rand.Rand) func() {
	ctx := context.Background()
	sections := l.state.View().Sections()
	if len(sections) == 0 {
		return nil
	}
	s := sections[r.Intn(len(sections))]
	entries, err := s.Load(ctx, l.index())
	l.must(err)
	if len(entries) < 2 {
		return nil
	}
	from := r.Intn(len(entries) - 1)
	to := min(from+2+r.Intn(6), len(entries))
	m := &merger{store: l.store, cluster: keyCluster, pace: func(context.Context, int64) error { return nil }}
	out, err := m.run(ctx, keyUploader, func() uint64 { l.merges++; return l.merges },
		&job{groups: []group{{stretch: &stretch{partition: keyPartition, section: s, entries: entries}, from: from, to: to}}})
	l.must(err)
	if len(out.replacements) == 0 {
		return nil
	}
	return func() {
		if l.mergeIn(s, entries, out.replacements) != metadata.SwapMoved {
			return
		}
		first, end := out.replacements[0].entry.First, out.replacements[0].entry.End
		for _, whole := range l.state.View().Sections() {
			if first < whole.From || end > whole.To {
				continue
			}
			part := partsOver(whole, first, end)
			entries, err := part.Load(ctx, l.index())
			l.must(err)
			if in := match(entries, out.replacements); len(in) > 0 {
				l.mergeIn(part, entries, in)
			}
		}
	}
}

func (l *keyLog) mergeIn(s metadata.Section, entries []metadata.Entry, in []replacement) metadata.SwapOutcome {
	l.merges++
	w, err := metadata.PrepareSwap(context.Background(), l.table, s, keyUploader, l.merges, replaced(entries, in))
	l.must(err)
	outcome, change, err := l.state.JudgeSwap(w)
	l.must(err)
	l.apply(change)
	return outcome
}

// TestKeysInterleaved has merges that end late, checkpoints, trims, appends, damage that comes and goes, and other calls of key compaction
// between any two steps of one: who reads the log and keeps the last of each key has the values that were appended last.
func TestKeysInterleaved(t *testing.T) {
	for seed := range int64(interleavings) {
		interleaved(t, seed, seed%8 == 0)
		if t.Failed() {
			return
		}
	}
}

// interleavings is how many seeds a run tries.
const interleavings = 400

func interleaved(t *testing.T, seed int64, long bool) {
	r := rand.New(rand.NewSource(seed))
	l := newKeyLog(t)
	keys, damage := 4+r.Intn(12), seed%2 == 1
	some := func() {
		var records []batch.Record
		for range 1 + r.Intn(5) {
			value := fmt.Sprint(len(l.all))
			if r.Intn(3) == 0 {
				value = ""
			}
			records = append(records, l.keyed(fmt.Sprint(r.Intn(keys)), value))
		}
		l.append(batch.None, records)
	}
	var late []func()
	depth := 0
	var clean func()
	small := func() {
		switch r.Intn(7) {
		case 0:
			some()
		case 1:
			l.checkpoint()
		case 2:
			l.now += int64(r.Intn(3000))
		case 3:
			if f := l.merging(r); f != nil {
				late = append(late, f)
			}
		case 4:
			if len(late) > 0 {
				f := late[0]
				late = late[1:]
				f()
			}
		case 5:
			if v := l.state.View(); r.Intn(4) == 0 && v.Next > v.Start+5 {
				l.trim(v.Start + int64(r.Intn(5)))
			}
		case 6:
			if depth < 3 {
				clean()
			}
		}
	}
	l.disturb = func() {
		if r.Intn(3) == 0 {
			small()
		}
	}
	clean = func() {
		depth++
		defer func() { depth-- }()
		d, count, most := l.deps(), 0, 1000
		if r.Intn(4) == 0 {
			most = r.Intn(4)
		}
		d.Swap = func(ctx context.Context, w *metadata.Swap) (metadata.SwapOutcome, error) {
			if count++; count > most {
				return 0, metadata.ErrUnknown
			}
			return l.swap(ctx, w)
		}
		if at := r.Int63n(l.state.View().Next + 1); damage && r.Intn(2) == 0 { // this process takes what lies there for damaged
			d.Aside = func(e *metadata.Entry) bool { return e.First <= at && at < e.End }
		}
		_, _ = CleanPartition(context.Background(), d, KeyConfig{MapBytes: []int64{1, 6 * slotBytes, 1 << 20}[r.Intn(3)], SegmentBytes: []int64{1, 300, 2000, 1 << 20}[r.Intn(4)]},
			keyPartition, KeyRules{DeleteRetentionMillis: []int64{0, 1000}[r.Intn(2)], TailBytes: []int64{0, 0, 300}[r.Intn(3)]}, true)
	}
	if long { // enough for pages
		for range 60 + r.Intn(150) {
			some()
		}
	}
	for range 40 + r.Intn(60) {
		if r.Intn(2) == 0 {
			some()
		}
		small()
		if r.Intn(3) == 0 {
			clean()
		}
	}
	v := l.state.View()
	var want []stored
	for _, record := range l.all[v.Start:] {
		want = append(want, stored{Record: record})
	}
	if diff := cmp.Diff(valuesOf(want), valuesOf(l.read())); diff != "" || len(l.damaged) > 0 {
		t.Errorf("seed %d: damaged at %v; values:\n%s", seed, l.damaged, diff)
	}
}
