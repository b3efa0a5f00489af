package compactor

import (
	"errors"

	"github.com/varvelog/varve/segments/batch"
)

// keySieve decides which records stay. It is pure.
type keySieve struct {
	offsets *offsetMap
	// until is the offset up to which the map knows all keys since the last pass, exclusive: what lies at or above it
	// is not touched.
	until int64
	// now is the wall clock, horizon what tombstones that are met for the first time get (both ms).
	now, horizon int64

	dropped, tombstones, keyless int64 // records
}

// sift appends what stays of a batch to dst. It is the batch as it was, unless left.Changed; and nothing when
// left.Count is 0. The maps of this call knew all keys from offset first on, and from spared on something before was left as it was: only
// a batch between them can get a horizon.
func (s *keySieve) sift(dst, b []byte, first, spared int64) ([]byte, batch.Left, error) {
	h, err := batch.ParseHeader(b)
	if err != nil {
		return dst, batch.Left{}, err
	}
	horizon, expired := s.horizon, false
	if at, marked := h.DeleteHorizon(); marked {
		expired = h.BaseOffset < spared && at <= s.now
	}
	if h.BaseOffset < first || h.BaseOffset >= spared || h.EndOffset() > s.until {
		horizon = never
	}
	return batch.Compact(dst, b, keyLimits, horizon, func(p *batch.Pick) bool {
		return s.keeps(p, expired)
	})
}

// never is a horizon that does not come.
const never = 1<<63 - 1

func (s *keySieve) keeps(p *batch.Pick, expired bool) bool {
	switch {
	case p.Offset >= s.until:
		return true
	case p.Key == nil: // older than the topic's policy: no later record takes its place
		s.keyless++
		return true
	case s.offsets.latest(hashKey(p.Key)) > p.Offset:
		s.dropped++
		return false
	case p.Tombstone && expired:
		s.tombstones++
		return false
	}
	return true
}

// learn notes the keys of a batch from offset from on, and returns the offset up to which the map then knows all of
// them: less than the batch's end when there was no room.
func (m *offsetMap) learn(b []byte, from, until int64) (int64, error) {
	h, err := batch.ParseHeader(b)
	if err != nil {
		return 0, err
	}
	known, full := min(h.EndOffset(), until), false
	_, err = batch.Each(b, keyLimits, func(p *batch.Pick) {
		if full || p.Offset < from || p.Offset >= until || p.Key == nil {
			return
		}
		if !m.put(hashKey(p.Key), p.Offset) {
			known, full = p.Offset, true
		}
	})
	return known, err
}

// badBatch says whether an error is about the bytes of a batch.
func badBatch(err error) bool {
	for _, bad := range []error{batch.ErrCorrupt, batch.ErrInvalid, batch.ErrTooLarge, batch.ErrTruncated, batch.ErrUnsupported} {
		if errors.Is(err, bad) {
			return true
		}
	}
	return false
}

// endOf is the offset after a batch.
func endOf(b []byte) int64 {
	h, err := batch.ParseHeader(b)
	if err != nil {
		return 0
	}
	return h.EndOffset()
}
