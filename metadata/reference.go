package metadata

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// NoProducer marks a batch without idempotent-producer fields.
const NoProducer = int64(-1)

// NoOffset stands where there is no offset.
const NoOffset = int64(-1)

// Batch describes one record batch of a span to the sequencer.
type Batch struct {
	Position      int64 // in the segment object, bytes
	Size          int32 // bytes, header included
	Offsets       int32 // offsets that it takes: lastOffsetDelta + 1
	Records       int32
	MinTimestamp  int64 // ms
	MaxTimestamp  int64
	LastTimestamp int64 // of the last record
	CRC           uint32
	ProducerID    int64 // or NoProducer
	ProducerEpoch int16
	BaseSequence  int32
	// ExpectedOffset is the next offset that the append demands, or NoOffset.
	ExpectedOffset int64
	// FencingToken is demanded when HasFencingToken.
	FencingToken    string
	HasFencingToken bool
}

// LastSequence is the sequence of the last record; sequences wrap to 0 after 2^31-1.
func (b *Batch) LastSequence() int32 { return addSequence(b.BaseSequence, b.Offsets-1) }

// end is the position behind the batch in its object.
func (b *Batch) end() int64 { return b.Position + int64(b.Size) }

func addSequence(s, n int32) int32 { return int32((int64(s) + int64(n)) & 0x7fffffff) }

// batchSum is the hash of a batch at its offset; index entries add them up. It
// covers what tells batches apart (the CRC covers payload, attributes, timestamps,
// producer fields), so merging batches untouched keeps the sum. The same number as
// segments/batch.ContentSum gives for the batch as stored.
func batchSum(b *Batch, offset int64) uint64 {
	var raw [24]byte
	binary.BigEndian.PutUint64(raw[0:], uint64(offset))
	binary.BigEndian.PutUint32(raw[8:], b.CRC)
	binary.BigEndian.PutUint32(raw[12:], uint32(b.Size))
	binary.BigEndian.PutUint32(raw[16:], uint32(b.Offsets-1))
	binary.BigEndian.PutUint32(raw[20:], uint32(b.Records))
	return xxhash.Sum64(raw[:])
}

// Reference asks a sequencer to take one span of a segment.
type Reference struct {
	Partition PartitionID
	Uploader  GatewayID
	Number    uint64 // of the segment
	// Previous is the uploader's segment number before this one in this partition; 0: none.
	Previous uint64
	// ByNumber: judged by Number alone, whatever came before (recovery: what the
	// numbers skip is void).
	ByNumber bool
	// Batches in the order of the span; none: the segment is void here.
	Batches []Batch
}

// Outcome is the verdict on one batch.
type Outcome uint8

const (
	// Accepted: appended at the verdict's offset.
	Accepted Outcome = iota + 1
	// Duplicate: had been appended; the verdict has the first offset.
	Duplicate
	// DuplicateForgotten: had been appended so long ago that its offset is no longer kept.
	DuplicateForgotten
	// OffsetMismatch: the expected offset was not the next; Actual has the next.
	OffsetMismatch
	// FenceMismatch: the fencing token was not the partition's.
	FenceMismatch
	// SequenceGap: a sequence before it is missing; Actual has the expected one. Retriable.
	SequenceGap
	// ProducerFenced: the producer's epoch is below the known one (Actual).
	ProducerFenced
	// UnknownProducer: sequence > 0 of a producer that is not known here.
	UnknownProducer
	// SwapRefused: what a swap was to replace is no longer there. Of swaps only.
	SwapRefused
)

// placed says whether the batch has an offset.
func (o Outcome) placed() bool { return o == Accepted || o == Duplicate }

func (o Outcome) String() string {
	switch o {
	case Accepted:
		return "accepted"
	case Duplicate:
		return "duplicate"
	case DuplicateForgotten:
		return "duplicate-forgotten"
	case OffsetMismatch:
		return "offset-mismatch"
	case FenceMismatch:
		return "fence-mismatch"
	case SequenceGap:
		return "sequence-gap"
	case ProducerFenced:
		return "producer-fenced"
	case UnknownProducer:
		return "unknown-producer"
	case SwapRefused:
		return "swap-refused"
	}
	return "invalid"
}

// BatchVerdict is the verdict on one batch.
type BatchVerdict struct {
	Outcome Outcome
	Offset  int64 // first offset, of Accepted and Duplicate; else NoOffset
	Actual  int64 // what stood against it: see Outcome
}

// Status is the verdict on a whole reference.
type Status uint8

const (
	// Judged: each batch has its verdict.
	Judged Status = iota + 1
	// Repeated: the reference had been judged; the batches' first verdicts follow
	// when they are still kept, else none.
	Repeated
	// Waiting: the uploader's previous number has not come yet. Nothing changed.
	Waiting
	// Refused: the partition is closed for ever. Nothing changed.
	Refused
)

// Verdict answers a reference.
type Verdict struct {
	Status  Status
	Batches []BatchVerdict
	Start   int64 // the log start then
	Next    int64 // the offset after the last one then
}
