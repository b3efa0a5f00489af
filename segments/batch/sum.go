package batch

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// ContentSum returns a 64-bit number that stands for a batch at its place in the log:
// XXH64 (seed 0) over base offset, CRC, size, last offset delta and count, big-endian,
// 24 bytes. The CRC stands for the payload, so only the header is read; h.BaseOffset
// must be the assigned one.
//
// The sum of a stretch of log is that of its batches, modulo 2^64. It does not
// depend on how batches are spread over segments, so moving them untouched keeps it,
// and a batch lost, doubled or moved changes it.
func ContentSum(h Header) uint64 {
	var b [24]byte
	binary.BigEndian.PutUint64(b[0:], uint64(h.BaseOffset))
	binary.BigEndian.PutUint32(b[8:], h.CRC)
	binary.BigEndian.PutUint32(b[12:], uint32(h.Size()))
	binary.BigEndian.PutUint32(b[16:], uint32(h.LastOffsetDelta))
	binary.BigEndian.PutUint32(b[20:], uint32(h.Count))
	return xxhash.Sum64(b[:])
}
