package client

import (
	"fmt"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

type placeKind uint8

const (
	placeUnset placeKind = iota
	placeEarliest
	placeLatest
	placeOffset
	placeBeforeEnd
	placeTime
)

// Place is where to begin or to end in every partition that is read. The zero value is "unset".
type Place struct {
	kind  placeKind
	value int64
}

// Earliest is the first offset that is still readable.
func Earliest() Place { return Place{kind: placeEarliest} }

// Latest is the offset after the last committed record, as of the request.
func Latest() Place { return Place{kind: placeLatest} }

// At is an offset, from 0.
func At(offset int64) Place { return Place{kind: placeOffset, value: offset} }

// BeforeEnd is n offsets before the end as of the request, but not before the earliest: as many records,
// or fewer where key compaction took some out.
func BeforeEnd(n int64) Place { return Place{kind: placeBeforeEnd, value: n} }

// AtTime is the first offset, in offset order, whose timestamp is at or after t. If there is none
// it is the end as of the request.
func AtTime(t time.Time) Place { return Place{kind: placeTime, value: ceilMilli(t)} }

// IsZero reports whether the place is unset.
func (p Place) IsZero() bool { return p.kind == placeUnset }

// String writes a place as the command line does: earliest, latest, 42, -10, @2026-01-02T15:04:05Z.
func (p Place) String() string {
	switch p.kind {
	case placeEarliest:
		return "earliest"
	case placeLatest:
		return "latest"
	case placeOffset:
		return fmt.Sprint(p.value)
	case placeBeforeEnd:
		return fmt.Sprintf("-%d", p.value)
	case placeTime:
		return "@" + time.UnixMilli(p.value).UTC().Format(time.RFC3339Nano)
	default:
		return "unset"
	}
}

// validate refuses numbers that no partition can have.
func (p Place) validate() error {
	if p.kind != placeTime && p.value < 0 {
		return fmt.Errorf("client: place %v: the number must not be negative", p)
	}
	return nil
}

// TimeRange holds the records with Start <= timestamp < End.
type TimeRange struct {
	Start, End time.Time
}

// contains reports whether a timestamp in milliseconds lies in the range.
func (r *TimeRange) contains(ms int64) bool {
	return ms >= ceilMilli(r.Start) && ms < ceilMilli(r.End)
}

func (r *TimeRange) message() *varvev1.TimeRange {
	if r == nil {
		return nil
	}
	return &varvev1.TimeRange{Start: ceilMilli(r.Start), End: ceilMilli(r.End)}
}

// ceilMilli rounds up, so that "timestamp >= t" keeps its meaning for timestamps in whole milliseconds.
func ceilMilli(t time.Time) int64 {
	ms := t.UnixMilli()
	if t.Nanosecond()%int(time.Millisecond) != 0 {
		ms++
	}
	return ms
}
