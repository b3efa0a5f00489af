package compactor

import (
	"slices"
	"time"
)

// mark says that a partition's log ended at next at a moment, by the clock of this process alone: what lies below is
// at least that old. What was there before the process began counts as new then.
type mark struct {
	next        int64
	when, began time.Time
}

// ages tells how old what parts of a log are.
type ages struct{ marks []mark }

// marksKept bounds the marks of a partition: each span of time that matters is told in some eighths.
const marksKept = 32

// note says where the log ends now. A mark takes up what comes within grain of when it began.
func (a *ages) note(next int64, now time.Time, grain time.Duration) {
	n := len(a.marks)
	switch {
	case n > 0 && a.marks[n-1].next >= next:
	case n > 0 && now.Sub(a.marks[n-1].began) < grain:
		a.marks[n-1].next, a.marks[n-1].when = next, now
	default:
		a.marks = append(a.marks, mark{next, now, now})
	}
}

// before is the offset up to which everything was there for at least as long as age.
func (a *ages) before(now time.Time, age time.Duration) int64 {
	var next int64
	for _, m := range a.marks {
		if now.Sub(m.when) >= age {
			next = max(next, m.next)
		}
	}
	return next
}

// reach is when what lies below an offset will have been there for age; zero: nobody knows how old it is.
func (a *ages) reach(offset int64, age time.Duration) time.Time {
	for _, m := range a.marks {
		if m.next >= offset {
			return m.when.Add(age)
		}
	}
	return time.Time{}
}

// thin drops marks that tell little: of those older than again all but the newest, and of those older than age all that
// lie closer together than an eighth of again.
func (a *ages) thin(now time.Time, age, again time.Duration) {
	var kept []mark
	for i, m := range a.marks {
		last := i == len(a.marks)-1
		if !last && now.Sub(a.marks[i+1].when) >= again {
			continue
		}
		if n := len(kept); n > 0 && !last && now.Sub(m.when) > age && m.when.Sub(kept[n-1].when) < again/8 {
			continue
		}
		kept = append(kept, m)
	}
	if len(kept) > marksKept {
		kept = slices.Concat(kept[:1], kept[len(kept)-marksKept+1:])
	}
	a.marks = kept
}
