package batch

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// Builder gathers records and makes batches of them. It is not for concurrent use.
type Builder struct {
	codec   Codec
	records []byte // encoded, not compressed
	count   int32
	base    int64 // timestamp of the first record
	max     int64
}

// BuildOptions are the producer fields of a batch. Mind that producer id 0 is one
// like any other: [NoProducer] is none.
type BuildOptions struct {
	ProducerID    int64 // -1 is none; the other two are then -1, whatever they say
	ProducerEpoch int16
	BaseSequence  int32 // sequence of the first record
}

// NoProducer is for a batch without an idempotent producer.
var NoProducer = BuildOptions{ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1}

// NewBuilder returns an empty builder of batches with that codec. Compression is at
// each codec's default level; zstd and gzip pack tighter, lz4 and snappy are faster.
func NewBuilder(c Codec) *Builder { return &Builder{codec: c} }

// Append adds a copy of r. Its offset does not matter: offsets are dense from 0 until
// [SetBaseOffset]. It returns [ErrInvalid] for a timestamp that is negative and not
// [NoTimestamp], and [ErrTooLarge] when the batch would pass 2 GiB; the builder is
// then as before. Smaller limits are the caller's, see [Builder.SizeWith].
func (b *Builder) Append(r Record) error {
	if r.Timestamp < NoTimestamp {
		return fmt.Errorf("%w: timestamp %d: use milliseconds since 1970, or %d for none", ErrInvalid, r.Timestamp, NoTimestamp)
	}
	size, delta := b.encoding(&r)
	if b.sizeWith(size) > math.MaxInt32 {
		return fmt.Errorf("%w: a batch ends at %d bytes", ErrTooLarge, math.MaxInt32)
	}
	if b.count == 0 {
		b.base, b.max = r.Timestamp, r.Timestamp
	}
	b.max = max(b.max, r.Timestamp)
	b.records = appendRecord(b.records, &r, size, delta, b.count)
	b.count++
	return nil
}

// encoding returns the size and the timestamp delta that r gets if it is next.
func (b *Builder) encoding(r *Record) (size int, delta int64) {
	if b.count > 0 {
		delta = r.Timestamp - b.base
	}
	return recordSize(r, delta, b.count), delta
}

func (b *Builder) sizeWith(recordSize int) int {
	return b.UncompressedSize() + varintSize(int64(recordSize)) + recordSize
}

// Count returns how many records were appended.
func (b *Builder) Count() int { return int(b.count) }

// UncompressedSize returns the size in bytes that the batch has without compression,
// header included.
func (b *Builder) UncompressedSize() int { return HeaderSize + len(b.records) }

// SizeWith returns what UncompressedSize would be after appending r.
func (b *Builder) SizeWith(r Record) int {
	size, _ := b.encoding(&r)
	return b.sizeWith(size)
}

// Build returns a batch of all records, with base offset 0 and leader epoch -1, in
// memory of its own. The builder stays as it is: call [Builder.Reset] to go on with
// an empty one. Without records, or with a negative epoch or sequence beside a
// producer id, it returns [ErrInvalid]; for a codec that does not exist
// [ErrUnsupported].
func (b *Builder) Build(o BuildOptions) ([]byte, error) {
	if b.count == 0 {
		return nil, fmt.Errorf("%w: no records", ErrInvalid)
	}
	if o.ProducerID == NoProducer.ProducerID {
		o = NoProducer
	}
	h := Header{
		LeaderEpoch:     -1,
		Magic:           magic,
		Attributes:      int16(b.codec),
		LastOffsetDelta: b.count - 1,
		BaseTimestamp:   b.base,
		MaxTimestamp:    b.max,
		ProducerID:      o.ProducerID,
		ProducerEpoch:   o.ProducerEpoch,
		BaseSequence:    o.BaseSequence,
		Count:           b.count,
	}
	if err := h.checkRules(Limits{MaxRecords: math.MaxInt32}); err != nil {
		return nil, err
	}
	room := len(b.records)
	if b.codec != None {
		room /= 2
	}
	out, err := appendDeflated(make([]byte, HeaderSize, HeaderSize+room), b.codec, b.records)
	if err != nil {
		return nil, err
	}
	if len(out) > math.MaxInt32 {
		return nil, fmt.Errorf("%w: %d bytes: a batch ends at %d", ErrTooLarge, len(out), math.MaxInt32)
	}
	h.Length = int32(len(out) - framePrefix)
	h.put(out)
	putCRC(out)
	return out, nil
}

// Reset forgets all records and keeps the memory.
func (b *Builder) Reset() {
	b.records, b.count = b.records[:0], 0
}

// put encodes the header into the front of b, the CRC as it is in h.
func (h Header) put(b []byte) {
	be := binary.BigEndian
	be.PutUint64(b[atBaseOffset:], uint64(h.BaseOffset))
	be.PutUint32(b[atLength:], uint32(h.Length))
	be.PutUint32(b[atLeaderEpoch:], uint32(h.LeaderEpoch))
	b[atMagic] = byte(h.Magic)
	be.PutUint32(b[atCRC:], h.CRC)
	be.PutUint16(b[atAttributes:], uint16(h.Attributes))
	be.PutUint32(b[atLastOffsetDelta:], uint32(h.LastOffsetDelta))
	be.PutUint64(b[atBaseTimestamp:], uint64(h.BaseTimestamp))
	be.PutUint64(b[atMaxTimestamp:], uint64(h.MaxTimestamp))
	be.PutUint64(b[atProducerID:], uint64(h.ProducerID))
	be.PutUint16(b[atProducerEpoch:], uint16(h.ProducerEpoch))
	be.PutUint32(b[atBaseSequence:], uint32(h.BaseSequence))
	be.PutUint32(b[atCount:], uint32(h.Count))
}

// putCRC writes the CRC of b, which ends where the batch does.
func putCRC(b []byte) {
	binary.BigEndian.PutUint32(b[atCRC:], crc32.Checksum(b[atAttributes:], castagnoli))
}
