package compactor

import (
	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
)

// Reason says why an object that nothing names stays. The texts are stable.
type Reason string

const (
	// KeptUnsettled: its uploader has not settled the number. It may be on its way to a commit, or in a buffer on a
	// disk that comes back.
	KeptUnsettled Reason = "unsettled"
	// KeptUnheard: its uploader is closed, and not every gateway has said that it knows: a late reference may
	// still be taken.
	KeptUnheard Reason = "unheard"
	// KeptUnknown: its uploader has no row, and no journal that says that it ended.
	KeptUnknown Reason = "unknown"
	// KeptForGrace: readers may still go by an index that names it.
	KeptForGrace Reason = "grace"
	// KeptNamed: the last look found a partition that names it.
	KeptNamed Reason = "named"
	// KeptUnclear: a partition that is in it cannot be read.
	KeptUnclear Reason = "unclear"
	// KeptUnreadable: it has no readable directory, so that nobody can tell whose it was.
	KeptUnreadable Reason = "unreadable"
	// KeptTooMany: more would go at once than may.
	KeptTooMany Reason = "too_many"
	// KeptRefused: the bucket did not delete it.
	KeptRefused Reason = "refused"
)

// standing is what is known of an uploader, as of before anything was looked for that names its segments.
type standing struct {
	// state is that of its row; empty: it has none.
	state             metadata.GatewayState
	floor, mergeFloor uint64
	// heard: every gateway that may judge its references knows that it is closed, and has settled what it judged before.
	heard bool
	// ended: it has no row, and its journal is sealed: it was closed and heard of before the row went.
	ended bool
}

// judge says why a segment that nothing names must stay, or "": nothing will ever name it, and it may go.
func (s standing) judge(uploader metadata.GatewayID, number uint64) Reason {
	switch {
	case s.state == "" && s.ended:
		return ""
	case s.state == "":
		return KeptUnknown
	case number < s.floorOf(uploader):
		return ""
	case s.state != metadata.GatewayClosed:
		return KeptUnsettled
	case s.heard:
		return ""
	}
	return KeptUnheard
}

// floorOf is the lowest number of the uploader that is not settled.
func (s standing) floorOf(uploader metadata.GatewayID) uint64 {
	switch {
	case seeded.Has(seeded.CollectAboveFloor):
		return 1 << 63
	case uploader.IsMerger():
		return s.mergeFloor
	}
	return s.floor
}

// share says whether so much may go at once: no more than a share of what there is, but for little.
func (l limits) share(objects, bytes, ofBytes int64) bool {
	return objects <= l.fewObjects || bytes <= l.fewBytes || float64(bytes) <= l.maxShare*float64(ofBytes)
}

// limits bound what goes at once without being forced.
type limits struct {
	maxShare   float64
	fewObjects int64
	fewBytes   int64
}
