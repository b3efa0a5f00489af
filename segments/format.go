package segments

import (
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"slices"
)

// Version is the format version that this package writes, and the newest that it
// reads.
const Version = 1

// Limits of a segment; docs/segment-format.md gives the reasons.
const (
	MaxObjectSize    = 4 << 30  // bytes
	MaxDirectorySize = 16 << 20 // bytes
	MaxBatches       = 1 << 20
	MaxFencingToken  = 256 // bytes
)

const (
	headerMagic = "VARVESEG"
	footerMagic = "VARVEEND"
	headerSize  = 16
	footerSize  = 48
	// tailSize is what the first read of a segment's end asks for. Footer and
	// directory of some 3,000 batches fit.
	tailSize = 64 << 10
)

// Flags of a batch in the directory.
const (
	flagBuffered = 1 << iota
	flagProducer
	flagExpectedOffset
	flagToken
	flagNewToken
	flagRecords
	flagsKnown = 1<<iota - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrVersion says that an object was written in a newer format than this program
// reads: it is whole, and a newer program is needed. Test with errors.Is; the
// message names both versions.
var ErrVersion = errors.New("segments: newer format version")

// ErrTooLarge says that a batch does not fit into the segment any more. It does fit
// into a new one.
var ErrTooLarge = errors.New("segments: segment is full")

// Ack is the level at which a batch was, or will be, acknowledged to its producer.
// Recovery after a crash submits only what was acknowledged as buffered.
type Ack uint8

const (
	// AckCommitted says that the producer is answered after the commit; until then it
	// counts on nothing, and tries again itself.
	AckCommitted Ack = iota
	// AckBuffered says that the producer was answered once the batch was on disk.
	AckBuffered
)

// String returns "committed" or "buffered".
func (a Ack) String() string {
	switch a {
	case AckCommitted:
		return "committed"
	case AckBuffered:
		return "buffered"
	}
	return fmt.Sprintf("ack(%d)", uint8(a))
}

// BatchInfo is what the directory tells about one record batch.
type BatchInfo struct {
	Position int64 // in the object, bytes
	Size     int32 // bytes, the batch's own header included
	Offsets  int32 // that it takes: last offset delta + 1
	Records  int32 // fewer than Offsets after key compaction

	// Milliseconds since 1970. LastTimestamp is the last record's.
	MinTimestamp, MaxTimestamp, LastTimestamp int64

	CRC uint32 // the batch's own CRC-32C

	// All three -1 without a producer.
	ProducerID    int64
	ProducerEpoch int16
	BaseSequence  int32

	Ack             Ack
	ExpectedOffset  int64 // append only here; -1: anywhere
	FencingToken    string
	HasFencingToken bool // tells an empty token from none
}

// hasProducer tells whether the producer fields say anything.
func (b *BatchInfo) hasProducer() bool {
	return b.ProducerID != -1 || b.ProducerEpoch != -1 || b.BaseSequence != -1
}

// Span is the batches of one partition within one segment.
type Span struct {
	SpanID
	// Previous is the number of the uploader's previous segment that has a span of
	// this partition; 0 when there is none.
	Previous uint64
	Position int64 // in the object, bytes
	Length   int64 // bytes
	Batches  []BatchInfo
}

// Directory is what a segment says about itself.
type Directory struct {
	Cluster ClusterID
	Gateway GatewayID
	Number  uint64
	Size    int64 // of the whole object, bytes
	Spans   []Span
}

// Key is the key under which the segment must lie.
func (d *Directory) Key() string { return ObjectKey(d.Cluster, d.Gateway, d.Number) }

// Span finds a partition's span.
func (d *Directory) Span(id SpanID) (Span, bool) {
	i, found := slices.BinarySearchFunc(d.Spans, id, func(s Span, id SpanID) int { return s.Compare(id) })
	if !found {
		return Span{}, false
	}
	return d.Spans[i], true
}

// Batches iterates over all batches in the order in which they lie.
func (d *Directory) Batches() iter.Seq2[SpanID, *BatchInfo] {
	return func(yield func(SpanID, *BatchInfo) bool) {
		for i := range d.Spans {
			for j := range d.Spans[i].Batches {
				if !yield(d.Spans[i].SpanID, &d.Spans[i].Batches[j]) {
					return
				}
			}
		}
	}
}

// BatchCount is the number of batches in all spans.
func (d *Directory) BatchCount() int {
	n := 0
	for i := range d.Spans {
		n += len(d.Spans[i].Batches)
	}
	return n
}
