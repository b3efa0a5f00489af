package batch

import "encoding/binary"

// PartitionForKey returns the partition, from 0, to which Kafka's clients send records
// of that key in a topic of that many partitions, at least 1. A nil key counts as an
// empty one here; clients spread records without a key.
func PartitionForKey(key []byte, partitions int32) int32 {
	return int32(murmur2(key)&0x7fffffff) % partitions
}

// murmur2 is MurmurHash2, 32 bits, with the seed of Kafka's Java client.
func murmur2(b []byte) uint32 {
	const (
		seed  = 0x9747b28c
		mix   = 0x5bd1e995
		shift = 24
	)
	h := uint32(seed) ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := binary.LittleEndian.Uint32(b) * mix
		k = (k ^ k>>shift) * mix
		h = h*mix ^ k
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(b[0])) * mix
	}
	h = (h ^ h>>13) * mix
	return h ^ h>>15
}
