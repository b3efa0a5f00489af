package metadata

import (
	"context"
	"slices"
)

// NoTimestamp stands where there is no record to be dated.
const NoTimestamp = int64(-1)

// Found is a record that a lookup found.
type Found struct {
	Offset    int64
	Timestamp int64 // ms
	// PreviousOffset is that of the record before, which is not Offset-1 where key compaction
	// took records out, and Previous its timestamp (ms); when PreviousKnown.
	PreviousOffset int64
	Previous       int64
	PreviousKnown  bool
}

// ScanFunc reads one chunk (one bounded ranged GET) and returns its first record, in
// offset order, at or after offset from whose timestamp is at least t; ok is false
// when there is none. The record before it is told when it lies in the chunk, at or
// after from; without an answer that is the last one. largest is the largest timestamp
// among the chunk's records at or after from, NoTimestamp without one; it is looked at only when t is 0.
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
	// search has reached, and whether it is known (it is not below the log start);
	// beforeOffset that record's offset, or NoOffset when the index does not tell.
	before       int64
	beforeOffset int64
	beforeKnown  bool
	// chunk is where the answer's chunk begins.
	chunk int64
}

// pass notes that the last record before the place end has a timestamp; exact: and that it
// lies right before it.
func (s *search) pass(timestamp, end int64, exact bool) {
	s.before, s.beforeOffset, s.beforeKnown = timestamp, NoOffset, true
	if exact {
		s.beforeOffset = end - 1
	}
}

// FirstAtOrAfter finds the first record in offset order, at or after the log start,
// whose timestamp is at least t. It descends by each part's largest timestamp: one
// page read, two when the log is long, and one scan. A part that straddles the log
// start may promise what is no longer readable; that costs one more descent and scan.
func (v *View) FirstAtOrAfter(ctx context.Context, index Index, scan ScanFunc, t int64) (Found, bool, error) {
	f, ok, _, err := v.first(ctx, index, scan, t)
	return f, ok, err
}

func (v *View) first(ctx context.Context, index Index, scan ScanFunc, t int64) (Found, bool, *search, error) {
	s := &search{view: v, index: index, scan: scan}
	f, ok, err := s.among(ctx, v.pieces(), t)
	return f, ok, s, err
}

func (s *search) among(ctx context.Context, list []piece, t int64) (Found, bool, error) {
	for _, p := range list {
		if p.end <= s.view.Start || p.empty() {
			continue
		}
		if p.child.MaxTimestamp >= t {
			f, ok, err := s.within(ctx, p, t)
			if ok || err != nil {
				return f, ok, err
			}
		}
		s.pass(p.child.LastTimestamp, p.end, s.view.Swaps == 0 || p.level < 0 && p.entry.dense())
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
				if s.chunk = c.First; !f.PreviousKnown && s.beforeKnown {
					f.PreviousOffset, f.Previous, f.PreviousKnown = s.beforeOffset, s.before, true
				}
				return f, true, nil
			}
		}
		s.pass(c.LastTimestamp, c.End, p.entry.dense())
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
// when there is none". Everything at or below it is older than t. Where key compaction took
// records out it is that of the last one that is left before the first.
func (v *View) Before(ctx context.Context, index Index, scan ScanFunc, t int64) (Answer, error) {
	f, ok, s, err := v.first(ctx, index, scan, t)
	switch {
	case err != nil:
		return none, err
	case !ok:
		return v.Last(), nil
	case f.Offset <= v.Start || !f.PreviousKnown:
		return none, nil
	case f.PreviousOffset == NoOffset:
		return s.lastBefore(ctx, t)
	}
	return Answer{true, f.PreviousOffset, f.Previous}, nil
}

// lastBefore finds the last record before the answer's chunk, all of which are older than t.
// It reads the index row before that chunk, and scans one chunk more if it is sparse.
func (s *search) lastBefore(ctx context.Context, t int64) (Answer, error) {
	for at := s.chunk; at > s.view.Start; {
		entries, err := s.view.Entries(ctx, s.index, at-1)
		if err != nil {
			return none, err
		}
		e := &entries[0]
		for _, c := range slices.Backward(e.Chunks()) {
			switch {
			case c.First >= at:
				continue
			case c.End <= s.view.Start:
				return none, nil
			case e.dense():
				return Answer{true, c.End - 1, c.LastTimestamp}, nil
			}
			f, _, _, err := s.scan(ctx, c, max(c.First, s.view.Start), t)
			if err != nil || f.PreviousKnown {
				return Answer{true, f.PreviousOffset, f.Previous}, err
			}
		}
		at = e.First
	}
	return none, nil
}

// Last answers with the last record. Key compaction leaves that one alone.
func (v *View) Last() Answer {
	if v.Next <= v.Start {
		return none
	}
	a := Answer{Found: true, Offset: v.Next - 1}
	for _, p := range slices.Backward(v.pieces()) {
		if !p.empty() {
			a.Timestamp = p.child.LastTimestamp
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
		if (i > 0 || p.child.First >= s.view.Start) && !p.empty() {
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
	return e.Length > 0 && e.MaxTimestamp >= start && e.MinTimestamp < end
}
