package compactor

import (
	"cmp"
	"slices"

	"github.com/varvelog/varve/metadata"
)

// Class is what topics must have in common for their records to share a merged segment: otherwise what is to be
// kept would hold the space of what is gone.
type Class struct {
	RetentionMillis, RetentionBytes int64
	Cleanup                         string
}

// ClassOf is the class of a topic's configuration.
func ClassOf(c metadata.Config) Class {
	return Class{c.RetentionMillis, c.RetentionBytes, c.Cleanup}
}

func (c Class) compare(o Class) int {
	return cmp.Or(cmp.Compare(c.RetentionMillis, o.RetentionMillis), cmp.Compare(c.RetentionBytes, o.RetentionBytes), cmp.Compare(c.Cleanup, o.Cleanup))
}

// fewestMerged is how many entries that are merged already must lie side by side to be worth another merge, unless
// they fill a segment.
const fewestMerged = 4

// stretch is neighbouring index entries of one partition that one swap can replace.
type stretch struct {
	partition metadata.PartitionID
	class     Class
	section   metadata.Section
	entries   []metadata.Entry // of the section
	// Entries that end at or below aged were there for longer than Config.Age, those at or below settled for longer than a
	// quarter of it, those at or below old for longer than Config.AgainAfter.
	aged, settled, old int64
	// aside, if set, says which entries must stay as they are: damage was found in them.
	aside func(*metadata.Entry) bool
}

// group is neighbouring entries of a stretch that become one.
type group struct {
	stretch  *stretch
	from, to int // in its entries; to exclusive
	bytes    int64
}

func (g *group) entries() []metadata.Entry { return g.stretch.entries[g.from:g.to] }

// job is what one new segment is made of. Groups are in the order of their spans.
type job struct {
	class  Class
	groups []group
	bytes  int64
}

// plan says which entries become which segments of at most target bytes. It is pure.
//
// Only small entries (half a target at most) are taken, in runs of neighbours: a run that fills a target is taken at
// once, a shorter one once its first entry is aged, up to what is settled: the newest entries are left alone. What is merged already is taken again only when it is old, and when at least
// as much is written beside it: so each byte is written once more in its first AgainAfter, and after that each time
// into a run that is at least twice as long.
func plan(target int64, stretches []*stretch) []job {
	var groups []group
	for _, s := range stretches {
		groups = s.groups(target, groups)
	}
	slices.SortStableFunc(groups, func(a, b group) int {
		return cmp.Or(a.stretch.class.compare(b.stretch.class), comparePartitions(a.stretch.partition, b.stretch.partition),
			cmp.Compare(a.entries()[0].First, b.entries()[0].First))
	})
	return worthwhile(pack(target, groups))
}

func comparePartitions(a, b metadata.PartitionID) int {
	switch {
	case a.Less(b):
		return -1
	case b.Less(a):
		return 1
	}
	return 0
}

// groups appends the stretch's groups.
func (s *stretch) groups(target int64, into []group) []group {
	for i := 0; i < len(s.entries); {
		j := i
		for j < len(s.entries) && s.takes(target, &s.entries[j]) {
			j++
		}
		into = s.cut(target, i, j, into)
		i = j + 1
	}
	return into
}

// takes says whether an entry may be merged at all.
func (s *stretch) takes(target int64, e *metadata.Entry) bool {
	if e.Length > target/2 || s.aside != nil && s.aside(e) {
		return false
	}
	return !merged(e) || e.End <= s.old
}

// merged says that a merge wrote the entry's segment.
func merged(e *metadata.Entry) bool { return e.Gateway.IsMerger() }

// cut divides a run of entries that may be merged.
func (s *stretch) cut(target int64, from, to int, into []group) []group {
	for k := from; k < to; {
		m, bytes := s.fill(target, k, to)
		full := m < to || bytes >= target*3/4
		if !full {
			if m, bytes = s.agedPart(k, m); m == k {
				break
			}
		}
		if heavy := s.heaviest(k, m, bytes); heavy >= 0 {
			into = s.cut(target, k, heavy, into)
			k = heavy + 1
			continue
		}
		if full || s.worthy(k, m) {
			into = append(into, group{s, k, m, bytes})
		}
		k = m
	}
	return into
}

// fill takes entries from k on for as long as they fit one segment.
func (s *stretch) fill(target int64, k, to int) (end int, bytes int64) {
	for end = k; end < to && (end == k || bytes+s.entries[end].Length <= target); end++ {
		bytes += s.entries[end].Length
	}
	return end, bytes
}

// agedPart is how far from k on entries may be merged although they fill no segment: nowhere unless the first is old enough.
func (s *stretch) agedPart(k, to int) (end int, bytes int64) {
	if s.entries[k].End > s.aged {
		return k, 0
	}
	for end = k; end < to && s.entries[end].End <= max(s.aged, s.settled); end++ {
		bytes += s.entries[end].Length
	}
	return end, bytes
}

// heaviest finds an entry that is merged already and longer than all others together; -1: none.
func (s *stretch) heaviest(from, to int, bytes int64) int {
	for i := from; i < to; i++ {
		if e := &s.entries[i]; merged(e) && 2*e.Length > bytes {
			return i
		}
	}
	return -1
}

// worthy says whether entries that fill no segment should be merged: not over and over for one more of those that are
// merged already.
func (s *stretch) worthy(from, to int) bool {
	for i := from; i < to; i++ {
		if !merged(&s.entries[i]) {
			return true
		}
	}
	return to-from >= fewestMerged
}

// pack puts groups, which are in order, into segments: as many as fit, of one class.
func pack(target int64, groups []group) []job {
	var jobs []job
	for _, g := range groups {
		n := len(jobs) - 1
		if n < 0 || jobs[n].class != g.stretch.class || jobs[n].bytes+g.bytes > target {
			jobs = append(jobs, job{class: g.stretch.class})
			n++
		}
		jobs[n].groups = append(jobs[n].groups, g)
		jobs[n].bytes += g.bytes
	}
	return jobs
}

// worthwhile leaves out jobs that would write one object for what lies in one object.
func worthwhile(jobs []job) []job {
	return slices.DeleteFunc(jobs, func(j job) bool { return j.sources(2) < 2 })
}

// sources counts the objects that a job reads, up to a limit.
func (j *job) sources(limit int) int {
	type name struct {
		gateway metadata.GatewayID
		number  uint64
	}
	seen := make(map[name]struct{})
	for i := range j.groups {
		for k := range j.groups[i].entries() {
			e := &j.groups[i].entries()[k]
			if e.Length > 0 {
				seen[name{e.Gateway, e.Number}] = struct{}{}
			}
			if len(seen) == limit {
				return limit
			}
		}
	}
	return len(seen)
}

// waiting says what time alone would have merged: raw is where the first small entry ends that is not aged, again up to
// where small entries that are merged already must be old for another merge of theirs. 0: there is nothing.
func (s *stretch) waiting(target int64) (raw, again int64) {
	run := 0
	for i := range s.entries {
		e := &s.entries[i]
		if e.Length > target/2 || s.aside != nil && s.aside(e) {
			run = 0
			continue
		}
		if run++; merged(e) {
			if again == 0 && run >= fewestMerged && e.End > s.old {
				again = e.End
			}
		} else if raw == 0 && e.End > s.aged {
			raw = e.End
		}
	}
	return raw, again
}
