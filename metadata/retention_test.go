package metadata_test

import (
	"context"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
)

// readable lists the entries that readers can reach.
func (l *timeline) readable(t tb, v *metadata.View) []metadata.Entry {
	var all []metadata.Entry
	for at := v.Start; at < v.Next; {
		entries, err := v.Entries(context.Background(), l, at)
		if err != nil {
			t.Fatalf("%v", err)
		}
		all = append(all, entries...)
		at = entries[len(entries)-1].End
	}
	return all
}

// expired is what brute force over the entries says.
func (l *timeline) expired(t tb, v *metadata.View, r metadata.Retention, now int64) metadata.Expired {
	out := metadata.Expired{From: v.Start, To: v.Start, LastTimestamp: metadata.NoTimestamp, Holder: metadata.NoTimestamp, NextAt: math.MaxInt64, Room: math.MaxInt64}
	entries := l.readable(t, v)
	if r.Bytes >= 0 {
		var left int64
		for _, e := range entries {
			left += e.Length
		}
		out.Room = 0
		for _, e := range entries {
			if left-e.Length < r.Bytes {
				out.Room = r.Bytes + e.Length - left
				break
			}
			left -= e.Length
			out.To = e.End
		}
		if out.Room == 0 {
			out.Room = max(r.Bytes-left, 1)
		}
	}
	var chunks []metadata.Chunk
	for _, e := range entries {
		chunks = append(chunks, e.Chunks()...)
	}
	if r.Millis >= 0 {
		for _, c := range chunks {
			if c.End <= out.To {
				continue
			}
			if c.MaxTimestamp >= now-r.Millis {
				out.Holder, out.NextAt = c.MaxTimestamp, c.MaxTimestamp+r.Millis+1
				break
			}
			out.To = c.End
		}
	}
	for _, c := range chunks {
		if c.End > v.Start && c.End <= out.To {
			out.Bytes += c.Length
			out.LastTimestamp = l.stamps[c.End-1]
		}
	}
	return out
}

// merge puts one entry in place of neighbouring ones, and returns how often it did.
func (l *timeline) merge(rt *rapid.T) int {
	sections := l.state.View().Sections()
	if len(sections) == 0 || rapid.IntRange(0, 4).Draw(rt, "merge") > 0 {
		return 0
	}
	s := rapid.SampledFrom(sections).Draw(rt, "section")
	i := rapid.IntRange(0, len(s.Parts)-1).Draw(rt, "from")
	s = s.Part(i, rapid.IntRange(i+1, min(i+3, len(s.Parts))).Draw(rt, "to"))
	entries, err := s.Load(context.Background(), l)
	if err != nil {
		rt.Fatalf("%v", err)
	}
	// A chunk for each entry, as long as there is room.
	is, one := metadata.Summarize(entries), entries[0]
	l.merges++
	one.Gateway, one.Number, one.Position, one.Points = metadata.MergerID("g1"), l.merges, 16, nil
	one.End, one.Records, one.Length, one.Sum = s.To, s.To-s.From, is.Bytes, is.Sum
	one.MinTimestamp, one.MaxTimestamp, one.LastTimestamp = is.MinTimestamp, is.MaxTimestamp, is.LastTimestamp
	position := one.Position
	for _, e := range entries[:min(len(entries), metadata.MaxPoints)] {
		one.Points = append(one.Points, metadata.Point{Offset: e.First, Position: position, MaxTimestamp: e.MaxTimestamp, LastTimestamp: e.LastTimestamp})
		position += e.Length
	}
	if len(entries) > metadata.MaxPoints {
		last := metadata.Summarize(entries[metadata.MaxPoints-1:])
		p := &one.Points[metadata.MaxPoints-1]
		p.MaxTimestamp, p.LastTimestamp = last.MaxTimestamp, last.LastTimestamp
	}
	w, err := metadata.PrepareSwap(context.Background(), l.table, s, one.Gateway, one.Number, []metadata.Entry{one})
	if err != nil {
		rt.Fatalf("%v", err)
	}
	outcome, change, err := l.state.JudgeSwap(w)
	if err != nil || outcome != metadata.Swapped {
		rt.Fatalf("swap: %v, %v", outcome, err)
	}
	l.apply(rt, change)
	return 1
}

func TestExpiredEqualsBruteForce(t *testing.T) {
	metadata.ShrinkLimits(t, 3, 3, 10, 5, 100)
	height, trimmed, merged, some, bySize, byTime := 0, 0, 0, 0, 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		l := newTimeline(rt)
		style := rapid.IntRange(0, 4).Draw(rt, "style")
		ask := func(rt *rapid.T) {
			v := l.state.View()
			r := metadata.Retention{Millis: rapid.SampledFrom([]int64{-1, 0, 5, 100}).Draw(rt, "ms"), Bytes: -1}
			if rapid.Bool().Draw(rt, "by size") {
				r.Bytes = rapid.Int64Range(0, v.Bytes+200).Draw(rt, "bytes")
			}
			now := rapid.Int64Range(0, 700).Draw(rt, "now")
			l.pages = 0
			got, err := v.Expired(context.Background(), l, r, now)
			if err != nil {
				rt.Fatalf("%v", err)
			}
			if most := 4 * v.Height(); l.pages > most {
				rt.Fatalf("%d index reads, allowed are %d", l.pages, most)
			}
			want := l.expired(rt, v, r, now)
			if diff := cmp.Diff(want, got); diff != "" {
				rt.Fatalf("%+v at %d of the log from %d to %d: %s", r, now, v.Start, v.Next, diff)
			}
			height = max(height, v.Height())
			if got.To > got.From && got.To < v.Next {
				some++
			}
			switch {
			case r.Millis < 0 && got.To > got.From:
				bySize++
			case r.Bytes < 0 && got.To > got.From:
				byTime++
			}
			if rapid.IntRange(0, 3).Draw(rt, "do it") == 0 {
				l.trim(rt, got.To)
				trimmed++
			}
		}
		actions := map[string]func(*rapid.T){
			"append": func(rt *rapid.T) {
				for range rapid.IntRange(1, 5).Draw(rt, "segments") {
					batches := make([][]int64, rapid.IntRange(1, 6).Draw(rt, "batches"))
					n := len(l.stamps)
					for i := range batches {
						for range rapid.IntRange(1, 4).Draw(rt, "records") {
							batches[i] = append(batches[i], drawStamp(rt, style, n))
							n++
						}
					}
					l.append(rt, rapid.Int32Range(61, 120).Draw(rt, "size"), batches...)
				}
			},
			"checkpoint": func(rt *rapid.T) { l.checkpoint(rt) },
			"merge":      func(rt *rapid.T) { merged += l.merge(rt) },
			"trim within a batch": func(rt *rapid.T) {
				v := l.state.View()
				if rapid.IntRange(0, 5).Draw(rt, "trim") == 0 {
					l.trim(rt, rapid.Int64Range(v.Start, v.Next).Draw(rt, "to"))
				}
			},
			"ask": ask,
			"":    ask,
		}
		for range 6 {
			rt.Repeat(actions)
		}
	})
	t.Logf("height %d, %d merges, %d trims, %d that leave something, %d by size, %d by time", height, merged, trimmed, some, bySize, byTime)
	if height < 2 || merged == 0 || trimmed == 0 || some == 0 || bySize == 0 || byTime == 0 {
		t.Error("too little happened")
	}
}

// TestFutureHolds: a record that is dated far ahead holds what follows it.
func TestFutureHolds(t *testing.T) {
	l := newTimeline(t)
	for _, at := range []int64{1000, 2000, 9_000_000, 3000, 4000} {
		l.append(t, 100, []int64{at})
	}
	got, err := l.state.View().Expired(t.Context(), l, metadata.Retention{Millis: 1000, Bytes: -1}, 6000)
	want := metadata.Expired{To: 2, Bytes: 200, LastTimestamp: 2000, Holder: 9_000_000, NextAt: 9_001_001, Room: math.MaxInt64}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v: %s", err, diff)
	}
}

func TestRetentionOfPolicies(t *testing.T) {
	for policy, want := range map[string]metadata.Retention{
		metadata.CleanupDelete: {Millis: 5, Bytes: 7}, metadata.CleanupBoth: {Millis: 5, Bytes: 7}, metadata.CleanupCompact: {Millis: -1, Bytes: -1},
	} {
		c, err := metadata.ParseConfig(map[string]string{"retention.ms": "5", "retention.bytes": "7", "cleanup.policy": policy})
		if got := c.Retention(); err != nil || got != want || got.Forever() != (policy == metadata.CleanupCompact) {
			t.Errorf("%s: %+v, %v", policy, got, err)
		}
	}
}
