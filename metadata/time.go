package metadata

import (
	"context"
)

// NoTimestamp stands where there is no record to be dated.
const NoTimestamp = int64(-1)

// Found is a record that a lookup found.
type Found struct {
	Offset    int64
	Timestamp int64 // ms
	// Previous is the timestamp of the record at Offset-1, when PreviousKnown.
	Previous      int64
	PreviousKnown bool
}

// ScanFunc reads one chunk (one bounded ranged GET) and returns its first record, in
// offset order, at or after offset from whose timestamp is at least t; ok is false
// when there is none. largest is the largest timestamp among the chunk's records
// at or after from, NoTimestamp without one; it is looked at only when t is 0.
type ScanFunc func(ctx context.Context, chunk Chunk, from, t int64) (f Found, largest int64, ok bool, err error)

// Answer is what a time lookup says of one partition.
type Answer struct {
	Found     bool
	Offset    int64 // or NoOffset
	Timestamp int64 // of the record there, or NoTimestamp
}

var none = Answer{Offset: NoOffset, Timestamp: NoTimestamp}

// search is one descent of the index.
type search struct {
	view  *View
	index Index
	scan  ScanFunc
	// before is the timestamp of the last record in front of the place that the
	// search has reached, and whether it is known (it is not below the log start).
	before      int64
	beforeKnown bool
}

// FirstAtOrAfter finds the first record in offset order, at or after the log start,
// whose timestamp is at least t. It descends by each part's largest timestamp: one
// page read, two when the log is long, and one scan. A part that straddles the log
// start may promise what is no longer readable; that costs one more descent and scan.
func (v *View) FirstAtOrAfter(ctx context.Context, index Index, scan ScanFunc, t int64) (Found, bool, error) {
	s := &search{view: v, index: index, scan: scan}
	return s.among(ctx, v.pieces(), t)
}

func (s *search) among(ctx context.Context, list []piece, t int64) (Found, bool, error) {
	for _, p := range list {
		if p.end <= s.view.Start {
			continue
		}
		if p.child.MaxTimestamp >= t {
			f, ok, err := s.within(ctx, p, t)
			if ok || err != nil {
				return f, ok, err
			}
		}
		s.before, s.beforeKnown = p.child.LastTimestamp, true
	}
	return Found{}, false, nil
}

func (s *search) within(ctx context.Context, p piece, t int64) (Found, bool, error) {
	if p.level >= 0 {
		list, err := s.view.open(ctx, s.index, p)
		if err != nil {
			return Found{}, false, err
		}
		return s.among(ctx, list, t)
	}
	for _, c := range p.entry.Chunks() {
		if c.End <= s.view.Start {
			continue
		}
		if c.MaxTimestamp >= t {
			f, _, ok, err := s.scan(ctx, c, max(c.First, s.view.Start), t)
			if err != nil {
				return Found{}, false, err
			}
			if ok {
				if !f.PreviousKnown && f.Offset == c.First && s.beforeKnown {
					f.Previous, f.PreviousKnown = s.before, true
				}
				return f, true, nil
			}
		}
		s.before, s.beforeKnown = c.LastTimestamp, true
	}
	return Found{}, false, nil
}

// AtOrAfter answers "the first offset at or after t".
func (v *View) AtOrAfter(ctx context.Context, index Index, scan ScanFunc, t int64) (Answer, error) {
	f, ok, err := v.FirstAtOrAfter(ctx, index, scan, t)
	if err != nil || !ok {
		return none, err
	}
	return Answer{true, f.Offset, f.Timestamp}, nil
}

// Before answers "the offset just before the first one at or after t, or the last
// when there is none". Everything at or below it is older than t.
func (v *View) Before(ctx context.Context, index Index, scan ScanFunc, t int64) (Answer, error) {
	f, ok, err := v.FirstAtOrAfter(ctx, index, scan, t)
	switch {
	case err != nil:
		return none, err
	case !ok:
		return v.Last(), nil
	case f.Offset <= v.Start || !f.PreviousKnown:
		return none, nil
	}
	return Answer{true, f.Offset - 1, f.Previous}, nil
}

// Last answers with the last record.
func (v *View) Last() Answer {
	if v.Next <= v.Start {
		return none
	}
	a := Answer{Found: true, Offset: v.Next - 1}
	if n := len(v.Tail); n > 0 {
		a.Timestamp = v.Tail[n-1].LastTimestamp
		return a
	}
	for _, children := range v.Levels {
		if n := len(children); n > 0 {
			a.Timestamp = children[n-1].LastTimestamp
			return a
		}
	}
	return none
}

// MaxTimestamp answers "the first offset that carries the largest timestamp among
// what is readable".
func (v *View) MaxTimestamp(ctx context.Context, index Index, scan ScanFunc) (Answer, error) {
	if v.Next <= v.Start {
		return none, nil
	}
	s := &search{view: v, index: index, scan: scan}
	largest, err := s.largest(ctx, v.pieces(), NoTimestamp)
	if err != nil {
		return none, err
	}
	return v.AtOrAfter(ctx, index, scan, largest)
}

// largest is the largest timestamp in the list, rest at least. Only the first part can
// straddle the log start; it is opened only if it claims to have the answer.
func (s *search) largest(ctx context.Context, list []piece, rest int64) (int64, error) {
	for len(list) > 0 && list[0].end <= s.view.Start {
		list = list[1:]
	}
	for i, p := range list {
		if i > 0 || p.child.First >= s.view.Start {
			rest = max(rest, p.child.MaxTimestamp)
		}
	}
	if len(list) == 0 || list[0].child.First >= s.view.Start || list[0].child.MaxTimestamp <= rest {
		return rest, nil
	}
	return s.largestWithin(ctx, list[0], rest)
}

func (s *search) largestWithin(ctx context.Context, p piece, rest int64) (int64, error) {
	if p.level >= 0 {
		list, err := s.view.open(ctx, s.index, p)
		if err != nil {
			return NoTimestamp, err
		}
		return s.largest(ctx, list, rest)
	}
	for _, c := range p.entry.Chunks() {
		if c.First >= s.view.Start {
			rest = max(rest, c.MaxTimestamp)
		}
	}
	for _, c := range p.entry.Chunks() {
		if c.First < s.view.Start && c.End > s.view.Start && c.MaxTimestamp > rest {
			_, largest, _, err := s.scan(ctx, c, s.view.Start, 0)
			return max(rest, largest), err
		}
	}
	return rest, nil
}

// Overlaps says whether records of the entry may lie in
// start <= timestamp < end.
func (e *Entry) Overlaps(start, end int64) bool {
	return e.MaxTimestamp >= start && e.MinTimestamp < end
}
