package metadata_test

import (
	"context"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
)

// timeline is a partition with its records in memory: what lookups are held against.
type timeline struct {
	table    *memtable.Table
	state    *metadata.Partition
	lease    *metadata.Lease
	sequence uint64
	number   uint64
	merges   uint64
	stamps   []int64          // of each record, by offset; of one that is compacted away: gone
	batches  []metadata.Chunk // by first offset; one a batch
	pages    int              // index reads
	scans    int
}

const gone = math.MinInt64

var timelinePartition = metadata.PartitionID{Topic: metadata.TopicID{1}, Number: 0}

// tb is what rapid's T and testing's T have in common.
type tb interface {
	Fatalf(string, ...any)
	Helper()
}

func newTimeline(t tb) *timeline {
	ctx := context.Background()
	l := &timeline{table: memtable.New()}
	journal, err := metadata.OpenJournal(ctx, l.table, "g1")
	if err != nil {
		t.Fatalf("%v", err)
	}
	if l.state, l.lease, err = metadata.Acquire(ctx, l.table, timelinePartition, journal, nil); err != nil {
		t.Fatalf("%v", err)
	}
	return l
}

func (l *timeline) apply(t tb, c *metadata.Change) {
	t.Helper()
	if c == nil {
		return
	}
	l.sequence++
	if err := l.state.Apply(c, l.sequence); err != nil {
		t.Fatalf("%v", err)
	}
}

// append adds a segment with batches of the given timestamps.
func (l *timeline) append(t tb, size int32, batches ...[]int64) {
	t.Helper()
	l.number++
	ref := &metadata.Reference{Partition: timelinePartition, Uploader: "u", Number: l.number, Previous: l.number - 1}
	position := int64(1000)
	for _, stamps := range batches {
		b := metadata.Batch{Position: position, Size: size, Offsets: int32(len(stamps)), Records: int32(len(stamps)),
			MinTimestamp: math.MaxInt64, LastTimestamp: stamps[len(stamps)-1], ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}
		for _, s := range stamps {
			b.MinTimestamp, b.MaxTimestamp = min(b.MinTimestamp, s), max(b.MaxTimestamp, s)
		}
		first := int64(len(l.stamps))
		l.stamps = append(l.stamps, stamps...)
		l.batches = append(l.batches, metadata.Chunk{Gateway: "u", Number: l.number, Position: position, Length: int64(size), First: first, End: int64(len(l.stamps))})
		ref.Batches = append(ref.Batches, b)
		position += int64(size)
	}
	_, change := l.state.Judge(ref)
	l.apply(t, change)
}

func (l *timeline) trim(t tb, to int64) {
	t.Helper()
	change, err := l.state.JudgeTrim(to)
	if err != nil {
		t.Fatalf("%v", err)
	}
	l.apply(t, change)
}

func (l *timeline) checkpoint(t tb) {
	t.Helper()
	ctx := context.Background()
	plan := l.state.Checkpoint(l.lease, l.sequence, false)
	if err := plan.Write(ctx, l.table, l.lease); err != nil {
		t.Fatalf("%v", err)
	}
	l.state.Done(plan)
	if err := plan.Clean(ctx, l.table); err != nil {
		t.Fatalf("%v", err)
	}
}

// compact takes records out of entries side by side, by a swap.
func (l *timeline) compact(rt *rapid.T) bool {
	sections := l.state.View().Sections()
	if len(sections) == 0 {
		return false
	}
	s := rapid.SampledFrom(sections).Draw(rt, "section")
	i := rapid.IntRange(0, len(s.Parts)-1).Draw(rt, "from part")
	s = s.Part(i, rapid.IntRange(i+1, len(s.Parts)).Draw(rt, "to part"))
	ctx := context.Background()
	entries, err := s.Load(ctx, metadata.TableIndex{Table: l.table})
	if err != nil {
		rt.Fatalf("%v", err)
	}
	a := rapid.IntRange(0, len(entries)-1).Draw(rt, "first")
	b := rapid.IntRange(a+1, len(entries)).Draw(rt, "last")
	l.merges++
	entries = slices.Concat(entries[:a], []metadata.Entry{l.thin(rt, entries[a].First, entries[b-1].End)}, entries[b:])
	swap, err := metadata.PrepareSwap(ctx, l.table, s, "merger", l.merges, entries)
	if err != nil {
		rt.Fatalf("%v", err)
	}
	swap.Rewritten = true
	outcome, change, err := l.state.JudgeSwap(swap)
	if err != nil || outcome != metadata.Swapped {
		rt.Fatalf("%v, %v", outcome, err)
	}
	l.apply(rt, change)
	return true
}

// thin makes one entry of all batches between two offsets, without some of their records.
func (l *timeline) thin(rt *rapid.T, first, end int64) metadata.Entry {
	var batches []metadata.Batch
	var offsets []int64
	var others []metadata.Chunk
	position := int64(50)
	for _, c := range l.batches {
		if c.First < first || c.First >= end {
			others = append(others, c)
			continue
		}
		b := metadata.Batch{Position: position, Size: int32(c.Length), Offsets: int32(c.End - c.First), MinTimestamp: math.MaxInt64}
		for o := c.First; o < c.End; o++ {
			if o < int64(len(l.stamps))-1 && rapid.IntRange(0, 2).Draw(rt, "stays") == 0 {
				l.stamps[o] = gone
			}
			if s := l.stamps[o]; s != gone {
				b.MinTimestamp, b.MaxTimestamp, b.LastTimestamp = min(b.MinTimestamp, s), max(b.MaxTimestamp, s), s
				b.Records++
			}
		}
		if b.Records > 0 {
			batches, offsets = append(batches, b), append(offsets, c.First)
			c.Gateway, c.Number, c.Position = "merger", l.merges, position
			others = append(others, c)
			position += c.Length
		}
	}
	l.batches = others
	if len(batches) == 0 {
		return metadata.EmptyEntry(first, end)
	}
	return metadata.MergedEntry("merger", l.merges, batches, offsets, first, end)
}

func (l *timeline) Page(ctx context.Context, p metadata.PartitionID, at metadata.RowPlace) ([]metadata.Entry, error) {
	l.pages++
	return metadata.TableIndex{Table: l.table}.Page(ctx, p, at)
}

func (l *timeline) Node(ctx context.Context, p metadata.PartitionID, level int, at metadata.RowPlace) ([]metadata.Child, error) {
	l.pages++
	return metadata.TableIndex{Table: l.table}.Node(ctx, p, level, at)
}

// scan is a ScanFunc, which holds the chunk against the batches that lie there.
func (l *timeline) scan(t tb) metadata.ScanFunc {
	return func(_ context.Context, c metadata.Chunk, from, at int64) (f metadata.Found, largest int64, ok bool, err error) {
		l.scans++
		inside, bytes := int64(0), int64(0)
		if c.Length == 0 {
			t.Fatalf("chunk %+v is empty", c)
		}
		for _, b := range l.batches {
			if b.First >= c.First && b.End <= c.End && b.Number == c.Number && b.Position >= c.Position && b.Position+b.Length <= c.Position+c.Length {
				inside, bytes = inside+b.End-b.First, bytes+b.Length
			}
		}
		if inside != c.End-c.First && !c.Sparse || bytes != c.Length || from < c.First || from >= c.End {
			t.Fatalf("chunk %+v has the bytes of %d offsets; wanted from %d", c, inside, from)
		}
		largest = metadata.NoTimestamp
		for o := from; o < c.End; o++ {
			s := l.stamps[o]
			if s == gone {
				continue
			}
			if largest = max(largest, s); ok {
				continue
			}
			if s >= at {
				ok, f.Offset, f.Timestamp = true, o, s
				continue
			}
			f.PreviousOffset, f.Previous, f.PreviousKnown = o, s, true
		}
		return f, largest, ok, nil
	}
}

var noAnswer = metadata.Answer{Offset: metadata.NoOffset, Timestamp: metadata.NoTimestamp}

func (l *timeline) at(o int64) metadata.Answer {
	return metadata.Answer{Found: true, Offset: o, Timestamp: l.stamps[o]}
}

// What brute force says.

func (l *timeline) atOrAfter(start, at int64) metadata.Answer {
	for o := start; o < int64(len(l.stamps)); o++ {
		if l.stamps[o] >= max(at, 0) {
			return l.at(o)
		}
	}
	return noAnswer
}

func (l *timeline) before(start, at int64) metadata.Answer {
	o := int64(len(l.stamps))
	if a := l.atOrAfter(start, at); a.Found {
		o = a.Offset
	}
	for o--; o >= start; o-- {
		if l.stamps[o] != gone {
			return l.at(o)
		}
	}
	return noAnswer
}

func (l *timeline) maxTimestamp(start int64) metadata.Answer {
	best := noAnswer
	for o := start; o < int64(len(l.stamps)); o++ {
		if !best.Found || l.stamps[o] > best.Timestamp {
			best = l.at(o)
		}
	}
	return best
}

// look asks one question, and checks the answer and what it cost.
func (l *timeline) look(t tb, v *metadata.View, what string, reads, scans int, ask func() (metadata.Answer, error), want metadata.Answer) {
	t.Helper()
	l.pages, l.scans = 0, 0
	got, err := ask()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if got != want {
		t.Fatalf("%s: %+v, want %+v (log from %d to %d)", what, got, want, v.Start, v.Next)
	}
	if l.pages > reads || l.scans > scans {
		t.Fatalf("%s: %d index reads and %d scans, allowed are %d and %d", what, l.pages, l.scans, reads, scans)
	}
}

// lookups asks everything about t of a view.
func (l *timeline) lookups(t tb, v *metadata.View, at int64) {
	ctx, scan := context.Background(), l.scan(t)
	// One descent; one more, and one more scan, where the first part straddles the
	// log start. To find the largest timestamp takes one of each before.
	reads, scans, before := v.Height(), 1, 0
	if v.Start > 0 {
		reads, scans, before = 2*reads, 2, 1
	}
	l.look(t, v, "at or after", reads, scans, func() (metadata.Answer, error) { return v.AtOrAfter(ctx, l, scan, at) }, l.atOrAfter(v.Start, at))
	// The record before may lie in another page, and where records are gone it has to be looked for.
	swapped := min(int(v.Swaps), 1)
	l.look(t, v, "before", reads+swapped*2*v.Height(), scans+swapped, func() (metadata.Answer, error) { return v.Before(ctx, l, scan, at) }, l.before(v.Start, at))
	l.look(t, v, "max timestamp", reads+before*v.Height(), scans+before, func() (metadata.Answer, error) { return v.MaxTimestamp(ctx, l, scan) }, l.maxTimestamp(v.Start))
	last := noAnswer
	if v.Next > v.Start { // the last one never goes
		last = l.at(v.Next - 1)
	}
	l.look(t, v, "last", 0, 0, func() (metadata.Answer, error) { return v.Last(), nil }, last)
}

// entries checks that every offset is found by offset too.
func (l *timeline) entries(t tb, v *metadata.View, offset int64) {
	l.pages = 0
	entries, err := v.Entries(context.Background(), l, offset)
	if err != nil {
		t.Fatalf("entries from %d: %v", offset, err)
	}
	if offset == v.Next {
		if len(entries) != 0 {
			t.Fatalf("entries at the end: %+v", entries)
		}
		return
	}
	if len(entries) == 0 || entries[0].First > offset || entries[0].End <= offset || l.pages > v.Height() {
		t.Fatalf("entries from %d: %+v, after %d reads", offset, entries, l.pages)
	}
}

// drawStamp draws timestamps of one of the ways in which they come.
func drawStamp(rt *rapid.T, style int, n int) int64 {
	switch style {
	case 0: // shuffled
		return rapid.Int64Range(0, 40).Draw(rt, "t")
	case 1: // equal
		return 7
	case 2: // newest first
		return int64(max(0, 500-n))
	case 3: // oldest first
		return int64(n)
	}
	// one bad clock
	return rapid.SampledFrom([]int64{int64(n), int64(n), int64(n), 1 << 50}).Draw(rt, "t")
}

func TestLookupsEqualBruteForce(t *testing.T) {
	metadata.ShrinkLimits(t, 3, 3, 10, 5, 100)
	height, trimmed, asked, compacted := 0, 0, 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		l := newTimeline(rt)
		style := rapid.IntRange(0, 4).Draw(rt, "style")
		ask := func(rt *rapid.T) {
			v := l.state.View()
			if l.state.Unfolded() == 0 && rapid.Bool().Draw(rt, "from the table") {
				lease, err := metadata.ReadLease(context.Background(), l.table, timelinePartition, metadata.Strong)
				if err != nil {
					rt.Fatalf("%v", err)
				}
				v = lease.View()
			}
			at := rapid.SampledFrom([]int64{0, 41, math.MaxInt64, 1 << 50}).Draw(rt, "t")
			if n := len(l.stamps); n > 0 && rapid.Bool().Draw(rt, "near") {
				at = l.stamps[rapid.IntRange(0, n-1).Draw(rt, "record")] + rapid.Int64Range(-1, 1).Draw(rt, "by")
			}
			l.lookups(rt, v, at)
			l.entries(rt, v, rapid.Int64Range(v.Start, v.Next).Draw(rt, "offset"))
			height = max(height, v.Height())
			asked++
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
			"trim": func(rt *rapid.T) {
				v := l.state.View()
				if rapid.IntRange(0, 3).Draw(rt, "trim") == 0 {
					l.trim(rt, rapid.Int64Range(v.Start, v.Next).Draw(rt, "to"))
					trimmed++
				}
			},
			"compact": func(rt *rapid.T) {
				if l.compact(rt) {
					compacted++
				}
			},
			"ask": ask,
			"":    ask,
		}
		for range 6 {
			rt.Repeat(actions)
		}
	})
	t.Logf("%d questions, height %d, %d trims, %d compactions", asked, height, trimmed, compacted)
	if height < 3 || trimmed == 0 || compacted == 0 {
		t.Errorf("height %d, %d trims and %d compactions: too little happened", height, trimmed, compacted)
	}
}

// TestTimeTable is the table in the description of the command line.
func TestTimeTable(t *testing.T) {
	l := newTimeline(t)
	l.append(t, 100, []int64{1000, 5000}, []int64{2000})
	l.append(t, 100, []int64{9000, 3000})
	v, ctx := l.state.View(), context.Background()
	for _, c := range []struct{ t, at, before int64 }{
		{500, 0, -1}, {1000, 0, -1}, {1500, 1, 0}, {2500, 1, 0}, {4000, 1, 0},
		{5000, 1, 0}, {6000, 3, 2}, {9000, 3, 2}, {9001, -1, 4},
	} {
		at, err := v.AtOrAfter(ctx, l, l.scan(t), c.t)
		if err != nil || at.Offset != c.at || at.Found != (c.at >= 0) {
			t.Errorf("at or after %d: %+v %v, want %d", c.t, at, err, c.at)
		}
		before, err := v.Before(ctx, l, l.scan(t), c.t)
		if err != nil || before.Offset != c.before || before.Found != (c.before >= 0) {
			t.Errorf("before %d: %+v %v, want %d", c.t, before, err, c.before)
		}
	}
	largest, err := v.MaxTimestamp(ctx, l, l.scan(t))
	if err != nil || largest != (metadata.Answer{Found: true, Offset: 3, Timestamp: 9000}) {
		t.Errorf("max timestamp: %+v %v", largest, err)
	}
}

// TestLookupCost: what a lookup reads does not grow with the log.
func TestLookupCost(t *testing.T) {
	l := newTimeline(t)
	for n := range int64(100_000) { // entries in 390 pages, more than one node's
		l.append(t, 100, []int64{n * 10})
		if l.state.Due() {
			l.checkpoint(t)
		}
	}
	v := l.state.View()
	if v.Height() != 2 {
		t.Fatalf("height %d", v.Height())
	}
	for _, at := range []int64{0, 5, 123_456, 999_985, 999_990, 1_000_000} {
		l.look(t, v, "at or after", 2, 1, func() (metadata.Answer, error) {
			return v.AtOrAfter(context.Background(), l, l.scan(t), at)
		}, l.atOrAfter(0, at))
	}
}
