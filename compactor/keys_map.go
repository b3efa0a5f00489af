package compactor

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// keyHash stands for a key: the first 128 bits of its SHA-256. A record is dropped when a later one has the same hash, so
// two keys with one hash would lose a record. Among 2^40 keys the chance that any two meet is 2^-49; and nobody can choose
// keys that do, as they could with a faster hash: that would take 2^64 tries.
type keyHash [2]uint64

func hashKey(key []byte) keyHash {
	sum := sha256.Sum256(key)
	return keyHash{binary.BigEndian.Uint64(sum[0:]), binary.BigEndian.Uint64(sum[8:])}
}

// slotBytes is what the map takes for each slot.
const slotBytes = 24

// keySlot has the latest offset of a key plus one, 0 when it is free.
type keySlot struct {
	hash keyHash
	next int64
}

// offsetMap has the latest offset of each key, within a limit of memory: a hash table with open addressing that is
// never more than three quarters full.
type offsetMap struct {
	slots []keySlot
	used  int
	most  int
}

// newOffsetMap makes a map for keys many keys, if that fits limit bytes, else for as many as fit, at least three.
func newOffsetMap(limit, keys int64) *offsetMap {
	slots := max(min(keys+keys/3+2, limit/slotBytes), 4) // at least one stays free: find ends there
	return &offsetMap{slots: make([]keySlot, slots), most: int(slots - slots/4)}
}

// put notes that the key's latest record so far is at offset; false when there is no room for another key.
func (m *offsetMap) put(h keyHash, offset int64) bool {
	s := m.find(h)
	if s.next == 0 {
		if m.used == m.most {
			return false
		}
		m.used++
		s.hash = h
	}
	s.next = max(s.next, offset+1)
	return true
}

// latest is the offset of the key's latest record, -1 for a key that is not there.
func (m *offsetMap) latest(h keyHash) int64 { return m.find(h).next - 1 }

// find returns the key's slot, or the free one where it belongs.
func (m *offsetMap) find(h keyHash) *keySlot {
	at, _ := bits.Mul64(h[0], uint64(len(m.slots)))
	for {
		if s := &m.slots[at]; s.next == 0 || s.hash == h {
			return s
		}
		if at++; at == uint64(len(m.slots)) {
			at = 0
		}
	}
}
