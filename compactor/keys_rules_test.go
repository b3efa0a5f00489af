package compactor

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

func TestOffsetMapEqualsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Int64Range(1, 40*slotBytes).Draw(t, "bytes")
		m := newOffsetMap(limit, rapid.Int64Range(0, 60).Draw(t, "keys"))
		if bytes := int64(len(m.slots)) * slotBytes; bytes > max(limit, 4*slotBytes) {
			t.Fatalf("%d bytes, the limit is %d", bytes, limit)
		}
		want := make(map[string]int64)
		for offset, n := range rapid.SliceOf(rapid.IntRange(0, 40)).Draw(t, "records") {
			key := fmt.Sprint(n)
			_, known := want[key]
			if ok := m.put(hashKey([]byte(key)), int64(offset)); ok != (known || len(want) < m.most) {
				t.Fatalf("put says %v, %d of %d are used", ok, len(want), m.most)
			} else if ok {
				want[key] = int64(offset)
			}
		}
		for n := range 41 {
			offset, known := want[fmt.Sprint(n)]
			if !known {
				offset = -1
			}
			if got := m.latest(hashKey(fmt.Append(nil, n))); got != offset {
				t.Fatalf("key %d is at %d, want %d", n, got, offset)
			}
		}
	})
}

func TestWhatIsDirty(t *testing.T) {
	entry := func(first, end, bytes, largest int64, clean bool) metadata.Entry {
		return metadata.Entry{First: first, End: end, Records: end - first, Length: bytes, MaxTimestamp: largest, Clean: clean}
	}
	chunked := metadata.Entry{First: 20, End: 40, Records: 20, Length: 100, MaxTimestamp: 90,
		Points: []metadata.Point{{Offset: 20, MaxTimestamp: 5}, {Offset: 25, Position: 30, MaxTimestamp: 90}, {Offset: 35, Position: 70, MaxTimestamp: 5}}}
	const now = 100
	for _, c := range []struct {
		name  string
		tail  []metadata.Entry
		start int64
		rules KeyRules
		want  cleaning
		due   bool
	}{
		{"empty", nil, 0, KeyRules{}, cleaning{end: 0}, false},
		{"one record, which is the last", []metadata.Entry{entry(0, 1, 10, 1, false)}, 0, KeyRules{}, cleaning{}, false},
		{"all but the last record", []metadata.Entry{entry(0, 10, 50, 1, false), entry(10, 20, 60, 1, false)}, 0, KeyRules{},
			cleaning{end: 19, todo: 110, records: 20}, true},
		{"a tail", []metadata.Entry{entry(0, 10, 50, 1, false), entry(10, 20, 60, 1, false)}, 0, KeyRules{TailBytes: 60},
			cleaning{end: 10, todo: 50, records: 10}, false},
		{"all is tail", []metadata.Entry{entry(0, 10, 50, 1, false), entry(10, 20, 60, 1, false)}, 0, KeyRules{TailBytes: 110}, cleaning{}, false},
		{"a tail within an entry", []metadata.Entry{chunked}, 20, KeyRules{TailBytes: 30}, cleaning{dirty: 20, end: 35, todo: 70, records: 15}, true},
		{"mostly clean", []metadata.Entry{entry(0, 10, 50, 1, true), entry(10, 20, 40, 1, false), entry(20, 21, 9, 1, false)}, 0, KeyRules{DirtyRatio: 0.5},
			cleaning{dirty: 10, end: 20, clean: 50, todo: 40, records: 10}, false},
		{"clean behind dirty", []metadata.Entry{entry(0, 10, 50, 1, false), entry(10, 20, 60, 1, true), entry(20, 21, 9, 1, false)}, 0, KeyRules{DirtyRatio: 0.5},
			cleaning{end: 20, todo: 110, records: 20, behind: true}, true},
		{"young in the middle", []metadata.Entry{chunked, entry(40, 50, 10, 1, false)}, 20, KeyRules{LagMillis: 20},
			cleaning{dirty: 20, end: 25, todo: 30, records: 5, waits: 90}, true},
		{"below the log start", []metadata.Entry{entry(0, 10, 50, 1, false), entry(10, 20, 60, 1, false)}, 12, KeyRules{},
			cleaning{dirty: 12, end: 19, todo: 60, records: 10}, true},
	} {
		v := &metadata.View{Start: c.start, Tail: c.tail}
		if n := len(c.tail); n > 0 {
			v.Next = c.tail[n-1].End
		}
		p := newKeyPlanner(v, c.rules, now, nil)
		for i := range c.tail {
			if !p.add(&c.tail[i]) {
				break
			}
		}
		got := p.cleaning
		if got != c.want || got.due(c.rules) != c.due {
			t.Errorf("%s: %+v, due %v, want %+v, %v", c.name, got, got.due(c.rules), c.want, c.due)
		}
	}
}

// keyed is a record without a value when value is empty.
func (l *keyLog) keyed(key, value string) batch.Record {
	r := batch.Record{Timestamp: l.now, Key: []byte(key)}
	if value != "" {
		r.Value = []byte(value)
	}
	return r
}

func (l *keyLog) clean(rules KeyRules) KeyReport {
	l.t.Helper()
	report, err := CleanPartition(context.Background(), l.deps(), KeyConfig{}, keyPartition, rules, true)
	l.must(err)
	return report
}

// list is what is left, as offset:key=value.
func (l *keyLog) list() (list []string) {
	for _, r := range l.read() {
		list = append(list, fmt.Sprintf("%d:%s=%s", r.Offset, r.Key, r.Value))
	}
	return list
}

func (l *keyLog) expect(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, l.list()); diff != "" {
		t.Errorf("what is left (-want +got):\n%s", diff)
	}
}

// A tombstone stays for its time after the pass that removed what it deletes, however often it is passed meanwhile;
// the last record stays for ever.
func TestTombstones(t *testing.T) {
	l := newKeyLog(t)
	rules := KeyRules{DeleteRetentionMillis: 1000}
	l.append(batch.Zstd, []batch.Record{l.keyed("a", "1"), l.keyed("b", "1"), l.keyed("a", ""), l.keyed("c", "")})
	l.append(batch.None, []batch.Record{l.keyed("d", "")})
	l.now += 5000 // nothing begins before a pass
	l.clean(rules)
	l.expect(t, "1:b=1", "2:a=", "3:c=", "4:d=")
	l.now += 999
	l.append(batch.None, []batch.Record{l.keyed("e", "1")})
	l.clean(rules)
	l.expect(t, "1:b=1", "2:a=", "3:c=", "4:d=", "5:e=1")
	l.now++
	l.append(batch.None, []batch.Record{l.keyed("f", "")})
	l.clean(rules)
	l.expect(t, "1:b=1", "4:d=", "5:e=1", "6:f=")
	l.now += 1000
	l.append(batch.None, []batch.Record{l.keyed("f", "")})
	l.clean(rules)
	l.expect(t, "1:b=1", "5:e=1", "6:f=", "7:f=")
	l.now += 10_000
	l.append(batch.None, []batch.Record{l.keyed("g", "")})
	l.clean(rules)
	l.expect(t, "1:b=1", "5:e=1", "7:f=", "8:g=") // the other f had its time, too, but nothing to wait for
}

// A tombstone as the last record stays although its index entry lies in a page, and nothing is in the tail.
func TestTheLastRecordStays(t *testing.T) {
	l := newKeyLog(t)
	for i := range 70 {
		l.append(batch.None, []batch.Record{l.keyed(fmt.Sprint(i%3), "")})
	}
	l.checkpoint()
	if v := l.state.View(); len(v.Tail) > 0 {
		t.Fatalf("%d entries are in the tail", len(v.Tail))
	}
	for range 3 {
		l.clean(KeyRules{})
		l.now += 10
	}
	l.expect(t, "66:0=", "67:1=", "68:2=", "69:0=")
}

// What is damaged stays as it is and is named, and what lies behind it is compacted all the same; but tombstones behind it
// stay, since what they delete may lie in it.
func TestKeysBesideDamage(t *testing.T) {
	l := newKeyLog(t)
	l.append(batch.None, []batch.Record{l.keyed("a", "0"), l.keyed("b", "0")})
	l.append(batch.None, []batch.Record{l.keyed("a", "1"), l.keyed("c", "1")})
	l.append(batch.None, []batch.Record{l.keyed("b", "2"), l.keyed("c", ""), l.keyed("b", "3")})
	l.append(batch.None, []batch.Record{l.keyed("d", "4")})
	key := segments.ObjectKey(keyCluster, "g1", 2)
	object, _, err := l.store.Get(t.Context(), key, 0, -1)
	l.must(err)
	l.must(l.store.Delete(t.Context(), key))
	for range 2 {
		l.clean(KeyRules{})
	}
	if diff := cmp.Diff([]int64{2, 2}, l.damaged); diff != "" { // each call finds it anew
		t.Errorf("damaged entries:\n%s", diff)
	}
	l.must(l.store.Put(t.Context(), key, segments.NewBody(object)))
	l.expect(t, "0:a=0", "2:a=1", "3:c=1", "5:c=", "6:b=3", "7:d=4")
	for _, key := range []string{"e", "f"} { // it came back
		l.append(batch.None, []batch.Record{l.keyed(key, "5")})
		l.clean(KeyRules{})
	}
	l.expect(t, "2:a=1", "6:b=3", "7:d=4", "8:e=5", "9:f=5")
}

// A pass that was given up at its second swap leaves a log in which nothing has come back, and the next one ends it.
func TestKeysGivenUp(t *testing.T) {
	l := newKeyLog(t)
	for i := range 200 {
		value := fmt.Sprint(i)
		if i > 150 {
			value = ""
		}
		l.append(batch.None, []batch.Record{l.keyed(fmt.Sprint(i%50), value)})
		if i%100 == 99 {
			l.checkpoint() // a page
		}
	}
	before := valuesOf(l.read())
	d := l.deps()
	swaps := 0
	d.Swap = func(ctx context.Context, w *metadata.Swap) (metadata.SwapOutcome, error) {
		if swaps++; swaps > 1 {
			return 0, metadata.ErrUnknown
		}
		return l.swap(ctx, w)
	}
	if _, err := CleanPartition(t.Context(), d, KeyConfig{SegmentBytes: 1}, keyPartition, KeyRules{}, true); err == nil {
		t.Fatal("a swap of unknown outcome was taken for one")
	}
	if diff := cmp.Diff(before, valuesOf(l.read())); diff != "" {
		t.Errorf("values:\n%s", diff)
	}
	l.now++
	for range 2 {
		l.append(batch.None, []batch.Record{l.keyed("150", "")})
		l.clean(KeyRules{})
		l.now++
	}
	if diff := cmp.Diff(before, valuesOf(l.read())); diff != "" || len(l.read()) > 3 {
		t.Errorf("%d records are left; values:\n%s", len(l.read()), diff)
	}
}

func TestHorizonDoesNotOverflow(t *testing.T) {
	if h := (KeyRules{DeleteRetentionMillis: math.MaxInt64}).horizon(5); h != never {
		t.Errorf("%d", h)
	}
}

// A merge of clean entries is clean, since otherwise all that follows would be compared again.
func TestMergesKeepWhatIsClean(t *testing.T) {
	for _, second := range []bool{true, false} {
		p := pendingEntry{end: 2, batches: []placed{{info: segments.BatchInfo{Size: 61, Offsets: 2, Records: 2}}}}
		p.was = []metadata.Entry{{Clean: true}, {Clean: second}}
		if e, _ := p.index(keyUploader, 1, 16); e.Clean != second {
			t.Errorf("of a clean entry and one that is %v: %v", second, e.Clean)
		}
	}
}
