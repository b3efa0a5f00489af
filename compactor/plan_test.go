package compactor

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
)

const (
	testTarget = 64 << 20
	uploader   = metadata.GatewayID("g1")
	kib        = 1 << 10
	mib        = 1 << 20
)

func partitionID(n int) metadata.PartitionID { return metadata.PartitionID{Number: int32(n)} }

// entriesOf makes entries of ten records each, by their lengths in bytes; negative ones are merged already.
func entriesOf(lengths ...int64) []metadata.Entry {
	var list []metadata.Entry
	for i, length := range lengths {
		e := metadata.Entry{First: int64(10 * i), End: int64(10*i + 10), Records: 10, Gateway: uploader, Number: uint64(i + 1), Length: length}
		if length < 0 {
			e.Gateway, e.Length = metadata.MergerID(uploader), -length
		}
		list = append(list, e)
	}
	return list
}

func repeat(n int, length int64) []int64 { return slices.Repeat([]int64{length}, n) }

// TestPlan says which entries become which segments. Jobs are written as groups of from-to in a stretch.
func TestPlan(t *testing.T) {
	const all = 1 << 40
	for _, test := range []struct {
		name      string
		stretches []*stretch
		want      string
	}{
		{"nothing", nil, ""},
		{"too little, and young", []*stretch{{entries: entriesOf(repeat(20, mib)...)}}, ""},
		{"too little, but aged", []*stretch{{entries: entriesOf(repeat(20, mib)...), aged: all}}, "[0:0-20]"},
		{"a part of it is aged", []*stretch{{entries: entriesOf(repeat(20, mib)...), aged: 75}}, "[0:0-7]"},
		{"what is settled goes along", []*stretch{{entries: entriesOf(repeat(20, mib)...), aged: 75, settled: 120}}, "[0:0-12]"},
		{"but not by itself", []*stretch{{entries: entriesOf(repeat(20, mib)...), aged: 9, settled: 120}}, ""},
		{"a segment's worth, young", []*stretch{{entries: entriesOf(repeat(70, mib)...)}}, "[0:0-64]"},
		{"two and a rest that is aged", []*stretch{{entries: entriesOf(repeat(130, mib)...), aged: all}}, "[0:0-64][0:64-128][0:128-130]"},
		{"large ones stay", []*stretch{{entries: entriesOf(mib, mib, 40*mib, mib, mib), aged: all}}, "[0:0-2 0:3-5]"},
		{"one object is not worth it", []*stretch{{entries: entriesOf(mib), aged: all}}, ""},
		{"single entries of two partitions are", []*stretch{{entries: entriesOf(mib), aged: all}, {partition: partitionID(1), entries: entriesOf(40*mib, mib)[1:], aged: all}}, "[0:0-1 1:0-1]"},
		{"classes do not mix", []*stretch{{entries: entriesOf(mib, mib), aged: all, class: Class{RetentionMillis: 1}},
			{partition: partitionID(1), entries: entriesOf(mib, mib), aged: all, class: Class{RetentionMillis: 2}}}, "[0:0-2][1:0-2]"},
		{"nor do cleanup policies", []*stretch{{entries: entriesOf(mib, mib), aged: all, class: Class{Cleanup: "compact"}},
			{partition: partitionID(1), entries: entriesOf(mib, mib), aged: all, class: Class{Cleanup: "delete"}}}, "[0:0-2][1:0-2]"},
		{"a long run has segments to itself", []*stretch{{entries: entriesOf(repeat(70, mib)...), aged: all}, {partition: partitionID(1), entries: entriesOf(mib, mib), aged: all}},
			"[0:0-64][0:64-70 1:0-2]"},
		{"merged ones are left alone for a day", []*stretch{{entries: entriesOf(-mib, -mib, -mib, -mib, -mib), aged: all}}, ""},
		{"then merged once more", []*stretch{{entries: entriesOf(-mib, -mib, -mib, -mib, -mib), aged: all, old: all}}, "[0:0-5]"},
		{"not for one or two of them", []*stretch{{entries: entriesOf(-mib, -mib, -mib), aged: all, old: all}}, ""},
		{"nor where they are most of it", []*stretch{{entries: entriesOf(-20*mib, -mib, -mib, -mib, -mib), aged: all, old: all}}, "[0:1-5]"},
		{"but where as much is new", []*stretch{{entries: entriesOf(-20*mib, 10*mib, 10*mib), aged: all, old: all}}, "[0:0-3]"},
		{"new ones beside merged ones", []*stretch{{entries: entriesOf(-mib, mib, mib, -mib), aged: all}}, "[0:1-3]"},
		{"what is set aside stays", []*stretch{{entries: entriesOf(repeat(6, mib)...), aged: all, aside: func(e *metadata.Entry) bool { return e.First == 20 }}}, "[0:0-2 0:3-6]"},
		{"what was emptied goes with its neighbours", []*stretch{{entries: entriesOf(mib, 0, mib), aged: all}}, "[0:0-3]"},
		{"and not alone", []*stretch{{entries: entriesOf(0, 0), aged: all}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			jobs, _ := plan(testTarget, test.stretches)
			if got := describe(jobs, test.stretches); got != test.want {
				t.Errorf("planned %q, want %q", got, test.want)
			}
		})
	}
}

func describe(jobs []job, stretches []*stretch) string {
	text := ""
	for _, j := range jobs {
		inner := ""
		for i, g := range j.groups {
			if i > 0 {
				inner += " "
			}
			inner += fmt.Sprintf("%d:%d-%d", slices.Index(stretches, g.stretch), g.from, g.to)
		}
		text += "[" + inner + "]"
	}
	return text
}

// TestPlanProperties plans for anything.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const target = 1000
		var stretches []*stretch
		for n := range rapid.IntRange(0, 6).Draw(t, "stretches") {
			s := &stretch{partition: partitionID(n), class: Class{RetentionMillis: rapid.Int64Range(0, 2).Draw(t, "class")}}
			s.entries = entriesOf(rapid.SliceOfN(rapid.Int64Range(-700, 700), 0, 30).Draw(t, "lengths")...)
			s.aged = rapid.Int64Range(0, 300).Draw(t, "aged")
			s.old = rapid.Int64Range(0, s.aged).Draw(t, "old")
			s.settled = rapid.Int64Range(s.aged, 310).Draw(t, "settled")
			s.lone = rapid.SampledFrom([]int64{0, s.old}).Draw(t, "lone")
			damaged := rapid.Int64Range(-20, 30).Draw(t, "damaged")
			s.aside = func(e *metadata.Entry) bool { return e.First == 10*damaged }
			stretches = append(stretches, s)
		}
		jobs, lone := plan(target, stretches)
		taken := make(map[*stretch]int)
		for i := range jobs {
			checkJob(t, target, &jobs[i], taken)
		}
		checkLone(t, jobs, lone)
		again, loneAgain := plan(target, stretches)
		if describe(jobs, stretches)+describe(lone, stretches) != describe(again, stretches)+describe(loneAgain, stretches) {
			t.Fatal("two plans of the same differ")
		}
	})
}

// checkLone looks at jobs of one object: each entry is in one job at most.
func checkLone(t *rapid.T, jobs, lone []job) {
	taken := make(map[*stretch]map[int]bool)
	take := func(j *job) {
		for i, g := range j.groups {
			if taken[g.stretch] == nil {
				taken[g.stretch] = make(map[int]bool)
			}
			for k := g.from; k < g.to; k++ {
				if taken[g.stretch][k] {
					t.Fatal("an entry is in two jobs")
				}
				taken[g.stretch][k] = true
			}
			if i > 0 && comparePartitions(j.groups[i-1].stretch.partition, g.stretch.partition) > 0 {
				t.Fatal("groups are out of order")
			}
		}
	}
	for i := range jobs {
		take(&jobs[i])
	}
	for i := range lone {
		j := &lone[i]
		if take(j); j.sources(2) != 1 {
			t.Fatal("a lone job of more than one object, or of nothing")
		}
		for _, g := range j.groups {
			if g.stretch.class != j.class || g.entries()[g.to-g.from-1].End > g.stretch.lone {
				t.Fatal("a lone job of another class, or of what is too young")
			}
		}
	}
}

func checkJob(t *rapid.T, target int64, j *job, taken map[*stretch]int) {
	var bytes int64
	for k := range j.groups {
		g := &j.groups[k]
		s := g.stretch
		if g.from < taken[s] || g.to <= g.from || g.to > len(s.entries) {
			t.Fatalf("a group of entries %d to %d, after %d", g.from, g.to, taken[s])
		}
		taken[s] = g.to
		if s.class != j.class {
			t.Fatal("classes are mixed")
		}
		var size, wasMerged, heaviest int64
		young := false
		for i := range g.entries() {
			e := &g.entries()[i]
			size += e.Length
			young = young || e.End > s.settled
			if e.Length > target/2 || s.aside(e) {
				t.Fatalf("entry at %d is not to be merged", e.First)
			}
			if merged(e) {
				wasMerged += e.Length
				heaviest = max(heaviest, e.Length)
				if e.End > s.old {
					t.Fatalf("what was merged is merged again before its time")
				}
			}
		}
		if 2*heaviest > size {
			t.Fatalf("%d bytes of a merge of %d were merged before in one", heaviest, size)
		}
		if young && size <= target/2 {
			t.Fatalf("young entries are merged into %d bytes", size)
		}
		bytes += size
	}
	if bytes != j.bytes || bytes > target {
		t.Fatalf("a job of %d bytes, said to be %d", bytes, j.bytes)
	}
	if j.sources(2) < 2 {
		t.Fatal("a job of one object")
	}
}

// simulated is a partition in a day's workload: it appends at a rate, and is merged.
type simulated struct {
	perFlush int64
	every    int // flushes
	entries  []metadata.Entry
	next     int64
	ages
}

// TestWriteAmplification lives through three days of many partitions that append at all rates, with a pass each quarter of an
// hour, and counts what is written to the bucket for each byte that comes.
func TestWriteAmplification(t *testing.T) {
	const partitions, flush = 60, 10 * time.Second
	random := rand.New(rand.NewPCG(1, 2))
	var list []*simulated
	for n := range partitions {
		list = append(list, &simulated{perFlush: int64(1+random.IntN(100)) * kib << (n % 8), every: 1 + random.IntN(60)})
	}
	began := time.Unix(0, 0)
	var came, written [4]int64 // by day
	number, sizes := uint64(0), make(map[objectName]int64)
	for step, now := 0, began; now.Sub(began) < 72*time.Hour; step, now = step+1, now.Add(flush) {
		day := int(now.Sub(began) / (24 * time.Hour))
		for _, p := range list {
			if step%p.every == 0 {
				p.entries = append(p.entries, metadata.Entry{First: p.next, End: p.next + 1, Records: 1, Gateway: uploader, Number: uint64(step + 1), Length: p.perFlush})
				p.next++
				p.note(p.next, now, time.Hour/8)
				came[day] += p.perFlush
				sizes[objectName{uploader, uint64(step + 1)}] += p.perFlush
			}
		}
		if step%90 == 0 {
			written[day] += passOver(list, now, &number, sizes)
		}
	}
	for day := range 3 {
		amplification := 1 + float64(written[day])/float64(came[day])
		t.Logf("day %d: %d MiB came, %d MiB were merged: write amplification %.3f", day+1, came[day]/mib, written[day]/mib, amplification)
		if day == 0 && amplification > 2 || amplification > 2.5 {
			t.Errorf("day %d: write amplification is %.3f", day+1, amplification)
		}
	}
	small, total := 0, 0
	for _, p := range list {
		total += len(p.entries)
		for i := range p.entries {
			if e := &p.entries[i]; e.End <= p.before(began.Add(72*time.Hour), 2*time.Hour) && !merged(e) && e.Length <= testTarget/2 {
				small++
			}
		}
	}
	t.Logf("%d entries are left, %d of them small ones that are two hours old", total, small)
	if small > 0 || total > 100*partitions {
		t.Errorf("of %d entries that are left %d are small and two hours old", total, small)
	}
}

// needed is how many bytes of an entry's object are named.
func needed(list []*simulated, e *metadata.Entry) (bytes int64) {
	for _, p := range list {
		for i := range p.entries {
			if objectOf(&p.entries[i]) == objectOf(e) {
				bytes += p.entries[i].Length
			}
		}
	}
	return bytes
}

// passOver merges what a plan says, given the sizes of objects, and returns the bytes that were written.
func passOver(list []*simulated, now time.Time, number *uint64, sizes map[objectName]int64) int64 {
	var stretches []*stretch
	for n, p := range list {
		stretches = append(stretches, &stretch{partition: partitionID(n), entries: p.entries, aged: p.before(now, time.Hour), settled: p.before(now, time.Hour/4), old: p.before(now, 24*time.Hour), lone: p.before(now, 24*time.Hour)})
		p.thin(now, time.Hour, 24*time.Hour)
	}
	var written int64
	replacements := make(map[*stretch][]replacement)
	jobs, lone := plan(testTarget, stretches)
	for i := range lone {
		if e := lone[i].first(); pinnedShare*lone[i].bytes <= sizes[objectOf(e)] && (!merged(e) || pinnedShare*needed(list, e) <= sizes[objectOf(e)]) {
			jobs = append(jobs, lone[i])
		}
	}
	for _, j := range jobs {
		*number++
		sizes[objectName{metadata.MergerID(uploader), *number}] = j.bytes
		written += j.bytes
		for _, g := range j.groups {
			e := g.entries()[0]
			e.End, e.Gateway, e.Number, e.Length = g.entries()[g.to-g.from-1].End, metadata.MergerID(uploader), *number, g.bytes
			e.Records = e.End - e.First
			replacements[g.stretch] = append(replacements[g.stretch], replacement{from: g.from, to: g.to, entry: e})
		}
	}
	for n, s := range stretches {
		if r := replacements[s]; r != nil {
			slices.SortFunc(r, func(a, b replacement) int { return a.from - b.from })
			list[n].entries = replaced(s.entries, r)
		}
	}
	return written
}

// TestAges asks how old what is.
func TestAges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a ages
		now := time.Unix(0, 0)
		type moment struct {
			next int64
			when time.Time
		}
		var truth []moment
		next := int64(0)
		for range rapid.IntRange(1, 400).Draw(t, "moments") {
			now = now.Add(time.Duration(rapid.Int64Range(0, 3600).Draw(t, "seconds")) * time.Second)
			next += rapid.Int64Range(0, 5).Draw(t, "records")
			a.note(next, now, time.Hour/8)
			truth = append(truth, moment{next, now})
			if rapid.Bool().Draw(t, "thin") {
				a.thin(now, time.Hour, 24*time.Hour)
			}
		}
		for _, age := range []time.Duration{time.Hour, 24 * time.Hour} {
			at, later := a.before(now, age), a.before(now.Add(age), age)
			for _, m := range truth {
				if m.when.After(now.Add(-age)) && m.next <= at && m.next > nextAt(truth, now.Add(-age), func(m moment) (int64, time.Time) { return m.next, m.when }) {
					t.Fatalf("offset %d counts as older than %s, and came at %s of %s", m.next, age, m.when, now)
				}
			}
			if later != next {
				t.Fatalf("after %s all up to %d is as old, not %d", age, next, later)
			}
		}
		if len(a.marks) > 400 {
			t.Fatal("marks are not bounded")
		}
	})
}

func nextAt[M any](list []M, when time.Time, of func(M) (int64, time.Time)) int64 {
	var next int64
	for _, m := range list {
		if n, at := of(m); !at.After(when) {
			next = n
		}
	}
	return next
}
