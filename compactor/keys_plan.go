package compactor

import (
	"math"
	"slices"

	"github.com/varvelog/varve/metadata"
)

// KeyRules say what key compaction does to a partition.
type KeyRules struct {
	// DeleteRetentionMillis is how long a tombstone stays after the pass that removed what it deletes.
	DeleteRetentionMillis int64
	// LagMillis is how old a record is, by its timestamp, before it is touched, or what follows it.
	LagMillis int64
	// DirtyRatio is the least share of bytes that are not clean for a pass to begin.
	DirtyRatio float64
	// TailBytes are the newest bytes, which are left alone; and the fewest that a pass is worth. The last record is
	// left alone anyway.
	TailBytes int64
}

// RulesOf are those of a topic's configuration.
func RulesOf(c metadata.Config, tailBytes int64) KeyRules {
	return KeyRules{c.DeleteRetentionMillis, c.CompactionLagMillis, c.DirtyRatio, tailBytes}
}

// horizon is from when on a tombstone may go that is met now (ms); math.MaxInt64: never.
func (r KeyRules) horizon(now int64) int64 {
	if r.DeleteRetentionMillis > math.MaxInt64-now {
		return math.MaxInt64
	}
	return now + r.DeleteRetentionMillis
}

// cleaning says what there is to do in a partition.
type cleaning struct {
	// Records from dirty up to end (offsets, end exclusive) have not been compared with what is before them.
	dirty, end int64
	// clean and todo are the bytes below dirty, and of those between.
	clean, todo int64
	records     int64 // between dirty and end, at most
	// waits is the timestamp (ms) of what ends it since it is too young, else 0.
	waits int64
	// behind: some are clean that lie behind others which are not.
	behind bool
}

// due says whether a pass is worth it.
func (c cleaning) due(r KeyRules) bool {
	return c.todo > 0 && c.todo >= r.TailBytes && float64(c.todo) >= r.DirtyRatio*float64(c.clean+c.todo)
}

// keyPlanner finds out what is to be cleaned, from index entries that it is shown in offset order.
type keyPlanner struct {
	start int64 // log start
	tail  int64 // where the part begins that is left alone
	young int64 // records dated after this (ms) are not touched yet
	aside func(*metadata.Entry) bool
	// from is the offset up to which all is known to be clean, whatever the marks say; noOffset: they do.
	from int64
	cleaning
	// Once an entry is not clean all that follows is dirty; once a chunk is too young all that follows is left alone.
	met, ended bool
}

// newKeyPlanner plans for a view; aside, if given, says which entries are damaged and stay as they are.
func newKeyPlanner(v *metadata.View, r KeyRules, now int64, aside func(*metadata.Entry) bool) *keyPlanner {
	p := &keyPlanner{start: v.Start, tail: activeTail(v, r.TailBytes), young: math.MaxInt64, aside: aside, from: noOffset}
	p.dirty, p.end = v.Start, v.Start
	if r.LagMillis > 0 {
		p.young = now - r.LagMillis
	}
	return p
}

// activeTail is the offset from which on a log is left alone: its newest chunks that have so many bytes together, of
// those that lie in the tail of the index, and its last record whatever bytes says. So readers need not look for the
// record that is the last one.
func activeTail(v *metadata.View, bytes int64) int64 {
	for i := len(v.Tail) - 1; i >= 0; i-- {
		for _, c := range slices.Backward(v.Tail[i].Chunks()) {
			if bytes <= 0 {
				return min(c.End, v.Next-1)
			}
			bytes -= c.Length
		}
	}
	if len(v.Tail) > 0 {
		return v.Tail[0].First
	}
	return v.Next - 1
}

// add shows it the next entry; false: nothing that follows matters.
func (p *keyPlanner) add(e *metadata.Entry) bool {
	aside := p.aside != nil && p.aside(e)
	p.behind = p.behind || p.met && e.Clean && !aside
	switch {
	case e.End <= p.start:
		return true
	case p.ended || e.First >= p.tail:
		return false
	}
	clean := aside || !p.met && e.Clean
	if p.from != noOffset {
		clean = aside || e.End <= p.from
	}
	p.met = p.met || !clean
	for _, c := range e.Chunks() {
		switch {
		case c.First >= p.tail:
			p.ended = true
			return false
		case c.MaxTimestamp > p.young:
			p.ended, p.waits = true, c.MaxTimestamp
			return false
		case !p.met:
			p.clean += c.Length
		case !clean:
			p.todo += c.Length
			p.records += min(e.Records, c.End-c.First)
		}
		p.reach(min(c.End, p.tail))
	}
	p.reach(min(e.End, p.tail))
	return true
}

// reach notes that nothing is too young up to an offset.
func (p *keyPlanner) reach(offset int64) {
	if p.end = offset; !p.met {
		p.dirty = offset
	}
}
