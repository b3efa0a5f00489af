package compactor

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments/batch"
)

// drawRecords draws records of few keys, dated in no order around now.
func (l *keyLog) drawRecords(rt *rapid.T, keyless bool) []batch.Record {
	records := make([]batch.Record, rapid.IntRange(1, 6).Draw(rt, "records"))
	for i := range records {
		r := &records[i]
		r.Timestamp = l.now - rapid.Int64Range(0, 2000).Draw(rt, "age")
		if !keyless || rapid.IntRange(0, 9).Draw(rt, "has a key") > 0 {
			r.Key = []byte(fmt.Sprintf("k%d", rapid.IntRange(0, 7).Draw(rt, "key")))
		}
		if rapid.IntRange(0, 3).Draw(rt, "has a value") > 0 {
			r.Value = []byte(fmt.Sprintf("v%d-%d", len(l.all), i))
		}
	}
	return records
}

// pass cleans with drawn rules and checks what became of the log.
func (l *keyLog) pass(rt *rapid.T, retention int64) KeyReport {
	rules := KeyRules{DeleteRetentionMillis: retention, DirtyRatio: rapid.SampledFrom([]float64{0, 0.5, 1}).Draw(rt, "ratio"),
		LagMillis: rapid.SampledFrom([]int64{0, 0, 500}).Draw(rt, "lag"), TailBytes: rapid.SampledFrom([]int64{0, 0, 300}).Draw(rt, "tail")}
	config := KeyConfig{MapBytes: rapid.SampledFrom([]int64{1, 4 * slotBytes, 1 << 20}).Draw(rt, "map"),
		SegmentBytes: rapid.SampledFrom([]int64{1, 400, 2000, 1 << 20}).Draw(rt, "segment")}
	force := rapid.Bool().Draw(rt, "force")
	before := l.read()
	report, err := CleanPartition(context.Background(), l.deps(), config, keyPartition, rules, force)
	if err != nil {
		rt.Fatalf("%v", err)
	}
	if report.Asides > 0 {
		rt.Fatalf("sound entries were set aside: %v", l.damaged)
	}
	after := l.read()
	l.compare(rt, before, after, rules)
	l.latest(rt, before, after)
	l.unique(rt, after, report.CleanTo)
	l.date(after, retention, report)
	return report
}

// compare judges by brute force what went.
func (l *keyLog) compare(rt *rapid.T, before, after []stored, rules KeyRules) {
	young := int64(math.MaxInt64) // offset from which on nothing may be touched, nor count
	for _, r := range before {
		if rules.LagMillis > 0 && r.Timestamp > l.now-rules.LagMillis {
			young = r.Offset
			break
		}
	}
	stays := make(map[int64]bool)
	for _, r := range after {
		stays[r.Offset] = true
		if was := l.all[r.Offset]; !bytes.Equal(was.Key, r.Key) || (was.Key == nil) != (r.Key == nil) || !bytes.Equal(was.Value, r.Value) ||
			(was.Value == nil) != (r.Value == nil) || was.Timestamp != r.Timestamp {
			rt.Fatalf("%s became %s", describeRecord(was), describeRecord(r.Record))
		}
	}
	if n := len(before); n > 0 && !stays[before[n-1].Offset] {
		rt.Fatalf("the last record is gone: %s", describeRecord(before[n-1].Record))
	}
	latest := make(map[string]int64) // below young
	for _, r := range before {
		if r.Key != nil && r.Offset < young {
			latest[string(r.Key)] = r.Offset
		}
	}
	for _, r := range before {
		if stays[r.Offset] || r.Key != nil && latest[string(r.Key)] > r.Offset && r.Offset < young {
			continue
		}
		horizon, known := l.horizons[r.Offset]
		if !known { // a call may go over it more than once
			horizon = l.now + min(rules.DeleteRetentionMillis, math.MaxInt64-l.now)
		}
		if r.Key != nil && r.Value == nil && horizon <= l.now && r.Offset < young {
			continue
		}
		rt.Fatalf("%s is gone: nothing before %d takes its place, and its horizon is %d at %d", describeRecord(r.Record), young, l.horizons[r.Offset], l.now)
	}
}

// latest checks that who reads all records and keeps the last of each key has the same values as before.
func (l *keyLog) latest(rt *rapid.T, before, after []stored) {
	was, is := valuesOf(before), valuesOf(after)
	if len(was) != len(is) {
		rt.Fatalf("values %v became %v", was, is)
	}
	for k, v := range was {
		if got, there := is[k]; !there || got != v {
			rt.Fatalf("values %v became %v", was, is)
		}
	}
}

func valuesOf(records []stored) map[string]string {
	values := make(map[string]string)
	for _, r := range records {
		switch {
		case r.Key == nil:
		case r.Value == nil:
			delete(values, string(r.Key))
		default:
			values[string(r.Key)] = string(r.Value)
		}
	}
	return values
}

// unique checks that no two records below an offset have one key.
func (l *keyLog) unique(rt *rapid.T, records []stored, below int64) {
	seen := make(map[string]int64)
	for _, r := range records {
		if r.Key == nil || r.Offset >= below {
			continue
		}
		if first, twice := seen[string(r.Key)]; twice {
			rt.Fatalf("key %q is at %d and %d, below %d, which is clean", r.Key, first, r.Offset, below)
		}
		seen[string(r.Key)] = r.Offset
	}
}

// date notes from when on tombstones may go: what they delete is gone, so the time may have begun.
func (l *keyLog) date(records []stored, retention int64, report KeyReport) {
	if !report.Due {
		return
	}
	seen := make(map[string]bool)
	for _, r := range records {
		if _, known := l.horizons[r.Offset]; r.Key != nil && r.Value == nil && !known && !seen[string(r.Key)] {
			l.horizons[r.Offset] = l.now + min(retention, math.MaxInt64-l.now)
		}
		seen[string(r.Key)] = true
	}
}

// lookups asks for a time and holds the answers against all that is readable.
func (l *keyLog) lookups(rt *rapid.T) {
	records, v, ctx := l.read(), l.state.View(), context.Background()
	at := l.now - rapid.Int64Range(-1, 2500).Draw(rt, "t")
	want, before := metadata.Answer{Offset: metadata.NoOffset, Timestamp: metadata.NoTimestamp}, metadata.Answer{Offset: metadata.NoOffset, Timestamp: metadata.NoTimestamp}
	for _, r := range records {
		if r.Timestamp >= at {
			want = metadata.Answer{Found: true, Offset: r.Offset, Timestamp: r.Timestamp}
			break
		}
		before = metadata.Answer{Found: true, Offset: r.Offset, Timestamp: r.Timestamp}
	}
	if got, err := v.AtOrAfter(ctx, l.index(), l.scan, at); err != nil || got != want {
		rt.Fatalf("at or after %d: %+v, %v, want %+v", at, got, err, want)
	}
	if got, err := v.Before(ctx, l.index(), l.scan, at); err != nil || got != before {
		rt.Fatalf("before %d: %+v, %v, want %+v", at, got, err, before)
	}
}

// Of each key the last record stays with its offset, and nothing else is promised or lost: whatever the batches, the
// index, the limits, and what happens between.
func TestKeysEqualBruteForce(t *testing.T) {
	var total KeyReport
	rapid.Check(t, func(rt *rapid.T) {
		l := newKeyLog(rt)
		retention := rapid.SampledFrom([]int64{0, 1000, math.MaxInt64}).Draw(rt, "delete retention")
		keyless := rapid.Bool().Draw(rt, "some without a key")
		l.disturb = func() {
			if rapid.IntRange(0, 7).Draw(rt, "checkpoint before the swap") == 0 {
				l.checkpoint()
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"append": func(rt *rapid.T) {
				for range rapid.IntRange(1, 4).Draw(rt, "segments") {
					batches := make([][]batch.Record, rapid.IntRange(1, 3).Draw(rt, "batches"))
					for i := range batches {
						batches[i] = l.drawRecords(rt, keyless)
					}
					l.append(rapid.SampledFrom([]batch.Codec{batch.None, batch.Gzip, batch.Snappy, batch.LZ4, batch.Zstd}).Draw(rt, "codec"), batches...)
				}
			},
			"append much": func(rt *rapid.T) { // enough for pages
				if rapid.IntRange(0, 3).Draw(rt, "much") == 0 {
					seed := rapid.IntRange(0, 1<<20).Draw(rt, "seed")
					for i := range rapid.IntRange(60, 150).Draw(rt, "segments") {
						r := batch.Record{Timestamp: l.now - int64((seed+i*7919)%2000), Key: fmt.Appendf(nil, "k%d", (seed+i*31)%40)}
						if (seed+i)%5 > 0 {
							r.Value = fmt.Appendf(nil, "v%d", len(l.all))
						}
						l.append(batch.None, []batch.Record{r})
					}
				}
			},
			"clean": func(rt *rapid.T) {
				r := l.pass(rt, retention)
				total.Dropped += r.Dropped
				total.Tombstones += r.Tombstones
				total.Swaps += r.Swaps
				total.Moved += r.Moved
				total.Passes = max(total.Passes, r.Passes)
				total.Keyless += r.Keyless
			},
			"checkpoint": func(*rapid.T) { l.checkpoint() },
			"wait":       func(rt *rapid.T) { l.now += rapid.Int64Range(1, 1500).Draw(rt, "ms") },
			"trim": func(rt *rapid.T) {
				if v := l.state.View(); rapid.IntRange(0, 3).Draw(rt, "trim") == 0 {
					l.trim(rapid.Int64Range(v.Start, v.Next).Draw(rt, "to"))
					l.collect()
				}
			},
			"": func(rt *rapid.T) { l.lookups(rt) },
		})
	})
	t.Logf("%+v", total)
	if total.Dropped == 0 || total.Tombstones == 0 || total.Moved == 0 || total.Passes < 2 || total.Keyless == 0 {
		t.Errorf("too little happened")
	}
}
