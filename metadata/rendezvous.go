package metadata

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Rendezvous chooses the gateway that should sequence a partition: the one with the
// highest weight, whatever the order of among; "" when there is none. A gateway that joins
// or leaves moves no partition but its own.
func Rendezvous(id PartitionID, among []GatewayID) GatewayID {
	return rendezvous(hashPartition(id), among)
}

// RendezvousText chooses a gateway for anything else that has a name, in the same way.
func RendezvousText(name string, among []GatewayID) GatewayID {
	return rendezvous(xxhash.Sum64String(name), among)
}

func rendezvous(hashed uint64, among []GatewayID) GatewayID {
	var best GatewayID
	var highest uint64
	for _, g := range among {
		if w := weight(hashed, g); best == "" || w > highest || w == highest && g < best {
			best, highest = g, w
		}
	}
	return best
}

// RendezvousOrder lists all of among, the best first: the second is the one that gets the
// partition when the first leaves.
func RendezvousOrder(id PartitionID, among []GatewayID) []GatewayID {
	partition := hashPartition(id)
	order := slices.Clone(among)
	slices.SortFunc(order, func(a, b GatewayID) int {
		return cmp.Or(cmp.Compare(weight(partition, b), weight(partition, a)), cmp.Compare(a, b))
	})
	return order
}

func hashPartition(id PartitionID) uint64 {
	var raw [20]byte
	copy(raw[:], id.Topic[:])
	binary.BigEndian.PutUint32(raw[16:], uint32(id.Number))
	return xxhash.Sum64(raw[:])
}

// weight hashes the two hashes once more: their sum or product alone would give one
// gateway high weights everywhere.
func weight(partition uint64, g GatewayID) uint64 {
	var raw [16]byte
	binary.BigEndian.PutUint64(raw[0:], partition)
	binary.BigEndian.PutUint64(raw[8:], xxhash.Sum64String(string(g)))
	return xxhash.Sum64(raw[:])
}
