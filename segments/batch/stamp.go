package batch

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// SetBaseOffset gives the batch at the front of b its place in the log, in place.
// Neither field is covered by the CRC. b must hold at least a header.
func SetBaseOffset(b []byte, offset int64, leaderEpoch int32) {
	_ = b[HeaderSize-1]
	binary.BigEndian.PutUint64(b[atBaseOffset:], uint64(offset))
	binary.BigEndian.PutUint32(b[atLeaderEpoch:], uint32(leaderEpoch))
}

// SealPlace is SetBaseOffset for a batch that is stored where its base offset cannot be told from its neighbours: where the
// leader epoch lies it puts a CRC-32C of the header's other bytes that the batch's own CRC does not cover, and of that
// CRC (bytes 0 to 11 and 16 to 20). Readers check it with [Header.CheckPlace]. b must hold the batch's final CRC.
func SealPlace(b []byte, offset int64) {
	SetBaseOffset(b, offset, 0)
	binary.BigEndian.PutUint32(b[atLeaderEpoch:], placeSum(b))
}

// placeSum is what SealPlace puts.
func placeSum(header []byte) uint32 {
	sum := crc32.Checksum(header[:atLeaderEpoch], castagnoli)
	return crc32.Update(sum, castagnoli, header[atMagic:atAttributes])
}

// CheckPlace says whether the base offset is the one that [SealPlace] sealed, else [ErrCorrupt].
func (h Header) CheckPlace() error {
	var header [HeaderSize]byte
	h.put(header[:])
	if sum := placeSum(header[:]); sum != uint32(h.LeaderEpoch) {
		return fmt.Errorf("%w: CRC-32C of bytes %d to %d and %d to %d, which have base offset %d, is %08x, the header says %08x", ErrCorrupt,
			atBaseOffset, atLeaderEpoch-1, atMagic, atAttributes-1, h.BaseOffset, sum, uint32(h.LeaderEpoch))
	}
	return nil
}

// SetAppendTime makes ms, milliseconds since 1970, the timestamp of all records, in
// place: attributes, MaxTimestamp and CRC change, the records do not. b must be one
// batch that [Validate] accepted.
func SetAppendTime(b []byte, ms int64) {
	_ = b[HeaderSize-1]
	b[atAttributes+1] |= bitAppendTime
	binary.BigEndian.PutUint64(b[atMaxTimestamp:], uint64(ms))
	putCRC(b)
}

// Rewrite returns a copy of the batch b in which each record without a timestamp has
// now, milliseconds since 1970. All else stays: codec, producer fields, base offset,
// leader epoch, the other timestamps. It costs a decode and a build, and with
// another compressor than the producer's the copy may be somewhat larger than b.
//
// Errors are those of [Validate], by which b is judged first.
func Rewrite(b []byte, l Limits, now int64) ([]byte, error) {
	info, err := Validate(b, l)
	if err != nil {
		return nil, err
	}
	if info.AppendTime() {
		out := append([]byte(nil), b...)
		if info.Untimed {
			SetAppendTime(out, now)
		}
		return out, nil
	}
	builder := NewBuilder(info.Codec())
	for r, err := range Records(b, l) {
		if err != nil {
			return nil, err
		}
		if r.Timestamp == NoTimestamp {
			r.Timestamp = now
		}
		if err := builder.Append(r); err != nil {
			return nil, err
		}
	}
	out, err := builder.Build(BuildOptions{info.ProducerID, info.ProducerEpoch, info.BaseSequence})
	if err != nil {
		return nil, err
	}
	SetBaseOffset(out, info.BaseOffset, info.LeaderEpoch)
	return out, nil
}
