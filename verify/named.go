package verify

import (
	"sync"

	"github.com/varvelog/varve/metadata"
)

// block is how many segment numbers one piece of the set covers: numbers of a gateway are
// dense, and one that damage made up costs no more than a block.
const block = 1 << 13

// named is the set of objects that something names: about a bit an object.
type named struct {
	mu       sync.Mutex
	gateways map[metadata.GatewayID]map[uint64]*[block / 64]uint64
}

func newNamed() *named {
	return &named{gateways: make(map[metadata.GatewayID]map[uint64]*[block / 64]uint64)}
}

func (n *named) add(entries []metadata.Entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range entries {
		e := &entries[i]
		if e.Length == 0 {
			continue
		}
		blocks := n.gateways[e.Gateway]
		if blocks == nil {
			blocks = make(map[uint64]*[block / 64]uint64)
			n.gateways[e.Gateway] = blocks
		}
		bits := blocks[e.Number/block]
		if bits == nil {
			bits = new([block / 64]uint64)
			blocks[e.Number/block] = bits
		}
		bits[e.Number%block/64] |= 1 << (e.Number % 64)
	}
}

func (n *named) has(gateway metadata.GatewayID, number uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	bits := n.gateways[gateway][number/block]
	return bits != nil && bits[number%block/64]&(1<<(number%64)) != 0
}
