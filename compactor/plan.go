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
	// lone is up to where entries may be merged alone, should their object be there for little else: they were there for longer than
	// Config.AgainAfter.
	lone int64
	// aside, if set, says which entries must stay as they are: damage was found in them.
	aside func(*metadata.Entry) bool
}

// group is neighbouring entries of a stretch that become one.
type group struct {
	stretch  *stretch
	from, to int // in its entries; to exclusive
	bytes    int64
	// lone: nothing is gained by it but the space of what lies beside it, and is not needed any more.
	lone bool
}

func (g *group) entries() []metadata.Entry { return g.stretch.entries[g.from:g.to] }

// job is what one new segment is made of. Groups are in the order of their spans.
type job struct {
	class  Class
	groups []group
	bytes  int64
}

// objectName names a segment.
type objectName struct {
	gateway metadata.GatewayID
	number  uint64
}

func objectOf(e *metadata.Entry) objectName { return objectName{e.Gateway, e.Number} }

// plan says which entries become which segments of at most target bytes. It is pure.
//
// Only small entries (half a target at most) are taken, in runs of neighbours: a run that fills a target is taken at
// once, a shorter one once its first entry is aged, up to what is settled: the newest entries are left alone. What is merged already is taken again only when it is old, and when at least
// as much is written beside it: so each byte is written once more in its first AgainAfter, and after that each time
// into a run that is at least twice as long.
//
// lone are jobs of one object each, of what nothing is old enough or near enough to be merged with. They are worth it only if the
// object is there for little else: see Compactor.pinned.
func plan(target int64, stretches []*stretch) (jobs, lone []job) {
	var groups []group
	for _, s := range stretches {
		groups = s.groups(target, groups)
	}
	slices.SortStableFunc(groups, func(a, b group) int {
		return cmp.Or(a.stretch.class.compare(b.stretch.class), comparePartitions(a.stretch.partition, b.stretch.partition),
			cmp.Compare(a.entries()[0].First, b.entries()[0].First))
	})
	var alone []group
	groups = slices.DeleteFunc(groups, func(g group) bool {
		if g.lone {
			alone = append(alone, g)
		}
		return g.lone
	})
	jobs, lone = worthwhile(pack(target, groups))
	return jobs, append(lone, byObject(alone)...)
}

// byObject makes a job of those groups of one entry each that lie in one object.
func byObject(groups []group) []job {
	type key struct {
		class  Class
		object objectName
	}
	var jobs []job
	at := make(map[key]int)
	for _, g := range groups {
		e := &g.entries()[0]
		k := key{g.stretch.class, objectOf(e)}
		n, known := at[k]
		if !known {
			n = len(jobs)
			at[k] = n
			jobs = append(jobs, job{class: k.class})
		}
		jobs[n].groups = append(jobs[n].groups, g)
		jobs[n].bytes += g.bytes
	}
	return jobs
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
			into = s.alone(heavy, heavy+1, s.cut(target, k, heavy, into))
			k = heavy + 1
			continue
		}
		if full || s.worthy(k, m) {
			into = append(into, group{stretch: s, from: k, to: m, bytes: bytes})
		} else {
			into = s.alone(k, m, into)
		}
		k = m
	}
	return into
}

// alone appends entries that are merged with nothing, each as a group of its own.
func (s *stretch) alone(from, to int, into []group) []group {
	for i := from; i < to; i++ {
		if e := &s.entries[i]; e.Length > 0 && e.End <= s.lone {
			into = append(into, group{stretch: s, from: i, to: i + 1, bytes: e.Length, lone: true})
		}
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

// worthwhile leaves out jobs that would write one object for what lies in one object; lone are those of them that are old enough to be
// looked at.
func worthwhile(list []job) (jobs, lone []job) {
	for _, j := range list {
		if j.sources(2) >= 2 {
			jobs = append(jobs, j)
		} else if j.bytes > 0 && !slices.ContainsFunc(j.groups, func(g group) bool { return g.entries()[g.to-g.from-1].End > g.stretch.lone }) {
			lone = append(lone, j)
		}
	}
	return jobs, lone
}

// sources counts the objects that a job reads, up to a limit.
func (j *job) sources(limit int) int {
	seen := make(map[objectName]struct{})
	for i := range j.groups {
		for k := range j.groups[i].entries() {
			e := &j.groups[i].entries()[k]
			if e.Length > 0 {
				seen[objectOf(e)] = struct{}{}
			}
			if len(seen) == limit {
				return limit
			}
		}
	}
	return len(seen)
}

// waiting says what time alone would have merged: raw is where the first small entry ends that is not aged, again up to
// where small entries that are merged already must be old for another merge of theirs, or one that nothing is merged with for a look
// at its object. 0: there is nothing.
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
		} else if e.End > s.aged {
			raw = earlier(raw, e.End)
		} else if e.Length > 0 && e.End > s.lone {
			again = earlier(again, e.End)
		}
	}
	return raw, again
}
