package batch

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
)

// HeaderSize is the size of a batch's header in bytes: the least size of a batch.
const HeaderSize = 61

// NoTimestamp is the timestamp of a record that has none.
const NoTimestamp = int64(-1)

// Byte offsets of the header's fields.
const (
	atBaseOffset      = 0
	atLength          = 8
	atLeaderEpoch     = 12
	atMagic           = 16
	atCRC             = 17
	atAttributes      = 21 // the CRC covers the batch from here
	atLastOffsetDelta = 23
	atBaseTimestamp   = 27
	atMaxTimestamp    = 35
	atProducerID      = 43
	atProducerEpoch   = 51
	atBaseSequence    = 53
	atCount           = 57

	// CRCStart is where the bytes begin that a batch's CRC covers: all up to its end.
	CRCStart = atAttributes

	framePrefix = 12 // base offset and length, which Length does not count
	magic       = 2
)

// Bits of the attributes.
const (
	maskCodec         = 0x07
	bitAppendTime     = 0x08
	bitTransactional  = 0x10
	bitControl        = 0x20
	bitDeleteHorizon  = 0x40
	maskFromProducers = maskCodec | bitAppendTime // what Validate lets pass
	maskStored        = maskFromProducers | bitDeleteHorizon
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header is the header of a batch. Timestamps are milliseconds since 1970.
type Header struct {
	BaseOffset      int64
	Length          int32 // bytes after this field
	LeaderEpoch     int32
	Magic           int8
	CRC             uint32 // CRC-32C of the attributes and all that follows
	Attributes      int16
	LastOffsetDelta int32
	BaseTimestamp   int64
	MaxTimestamp    int64
	ProducerID      int64 // -1 is none
	ProducerEpoch   int16
	BaseSequence    int32
	Count           int32 // of records
}

// Size returns the size of the whole batch in bytes.
func (h Header) Size() int { return framePrefix + int(h.Length) }

// Codec returns how the records are compressed. It may be a value that no codec has.
func (h Header) Codec() Codec { return Codec(h.Attributes & maskCodec) }

// AppendTime reports whether MaxTimestamp, the time of the append, stands for the
// timestamp of every record.
func (h Header) AppendTime() bool { return h.Attributes&bitAppendTime != 0 }

// Transactional reports whether the batch is part of a transaction.
func (h Header) Transactional() bool { return h.Attributes&bitTransactional != 0 }

// Control reports whether the records are markers of transactions, not of a user.
func (h Header) Control() bool { return h.Attributes&bitControl != 0 }

// DeleteHorizon returns the time from which on the batch's tombstones may go, ms since
// 1970, if [Compact] gave it one. It lies in BaseTimestamp.
func (h Header) DeleteHorizon() (ms int64, ok bool) {
	if h.Attributes&bitDeleteHorizon == 0 {
		return 0, false
	}
	return h.BaseTimestamp, true
}

// EndOffset returns the offset after the last one that the batch takes up.
func (h Header) EndOffset() int64 { return h.BaseOffset + int64(h.LastOffsetDelta) + 1 }

// ParseHeader decodes the header that b begins with; the records need not be in b.
// It checks no CRC. It returns [ErrTruncated] when b is shorter than a header,
// [ErrUnsupported] for another magic, [ErrCorrupt] for an impossible length and
// [ErrInvalid] for a negative count or last offset delta.
func ParseHeader(b []byte) (Header, error) {
	h, err := decodeHeader(b)
	if err != nil {
		return Header{}, err
	}
	if err := h.sane(); err != nil {
		return Header{}, err
	}
	return h, nil
}

// decodeHeader checks no more than what is needed to find the end of the batch:
// the other fields mean something only once the CRC agrees.
func decodeHeader(b []byte) (Header, error) {
	// Older formats have entries shorter than our header, with the magic at the
	// same place. Telling them apart helps more than "truncated".
	if len(b) > atMagic && b[atMagic] != magic {
		return Header{}, fmt.Errorf("%w: magic %d at byte %d: only record batches of magic %d are read", ErrUnsupported, int8(b[atMagic]), atMagic, magic)
	}
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("%w: %d bytes are less than a header of %d", ErrTruncated, len(b), HeaderSize)
	}
	be := binary.BigEndian
	h := Header{
		BaseOffset:      int64(be.Uint64(b[atBaseOffset:])),
		Length:          int32(be.Uint32(b[atLength:])),
		LeaderEpoch:     int32(be.Uint32(b[atLeaderEpoch:])),
		Magic:           int8(b[atMagic]),
		CRC:             be.Uint32(b[atCRC:]),
		Attributes:      int16(be.Uint16(b[atAttributes:])),
		LastOffsetDelta: int32(be.Uint32(b[atLastOffsetDelta:])),
		BaseTimestamp:   int64(be.Uint64(b[atBaseTimestamp:])),
		MaxTimestamp:    int64(be.Uint64(b[atMaxTimestamp:])),
		ProducerID:      int64(be.Uint64(b[atProducerID:])),
		ProducerEpoch:   int16(be.Uint16(b[atProducerEpoch:])),
		BaseSequence:    int32(be.Uint32(b[atBaseSequence:])),
		Count:           int32(be.Uint32(b[atCount:])),
	}
	if h.Length < HeaderSize-framePrefix {
		return Header{}, fmt.Errorf("%w: length %d at byte %d: a batch has at least %d", ErrCorrupt, h.Length, atLength, HeaderSize-framePrefix)
	}
	return h, nil
}

func (h Header) sane() error {
	if h.Count < 0 {
		return fmt.Errorf("%w: count of records is %d", ErrInvalid, h.Count)
	}
	if h.LastOffsetDelta < 0 {
		return fmt.Errorf("%w: last offset delta is %d", ErrInvalid, h.LastOffsetDelta)
	}
	return nil
}

// Check looks at the first batch in b: that all of it is there, its magic and its
// CRC. It is what a reader needs for batches that were validated when they came
// in; their records are not looked at, and what follows the batch neither. Errors
// are those of [ParseHeader], and [ErrCorrupt] when the CRC disagrees.
func Check(b []byte) (Header, error) {
	h, err := decodeHeader(b)
	if err != nil {
		return Header{}, err
	}
	if h.Size() > len(b) {
		return Header{}, fmt.Errorf("%w: %d of %d bytes", ErrTruncated, len(b), h.Size())
	}
	if sum := crc32.Checksum(b[atAttributes:h.Size()], castagnoli); sum != h.CRC {
		return Header{}, fmt.Errorf("%w: CRC-32C of bytes %d to %d is %08x, the header says %08x", ErrCorrupt, atAttributes, h.Size(), sum, h.CRC)
	}
	if err := h.sane(); err != nil {
		return Header{}, err
	}
	return h, nil
}

// Split walks batches that lie one after the other and yields the bytes of each,
// which alias b. Only headers are looked at: use [Check] for the rest. An error ends
// the walk; it is one of [ParseHeader]'s, and [ErrTruncated] when the last batch is
// not whole. An empty b yields nothing.
func Split(b []byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for at := 0; at < len(b); {
			h, err := ParseHeader(b[at:])
			if err == nil && h.Size() > len(b)-at {
				err = fmt.Errorf("%w: %d of %d bytes", ErrTruncated, len(b)-at, h.Size())
			}
			if err != nil {
				yield(nil, fmt.Errorf("batch at byte %d: %w", at, err))
				return
			}
			end := at + h.Size()
			if !yield(b[at:end:end], nil) {
				return
			}
			at = end
		}
	}
}
