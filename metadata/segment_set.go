package metadata

import "sync"

// setBlock is how many segment numbers one piece of a set covers: numbers of an uploader are
// dense, and one that damage made up costs no more than a block.
const setBlock = 1 << 13

// SegmentSet is a set of segments: about a bit each. The zero value is empty. Its methods may be called at once.
type SegmentSet struct {
	mu        sync.Mutex
	uploaders map[GatewayID]map[uint64]*[setBlock / 64]uint64
}

// AddNamed adds the segments that entries name.
func (s *SegmentSet) AddNamed(entries []Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range entries {
		if e := &entries[i]; e.Gateway != "" { // else no record is left of its offsets
			s.add(e.Gateway, e.Number)
		}
	}
}

func (s *SegmentSet) add(uploader GatewayID, number uint64) {
	blocks := s.uploaders[uploader]
	if blocks == nil {
		blocks = make(map[uint64]*[setBlock / 64]uint64)
		if s.uploaders == nil {
			s.uploaders = make(map[GatewayID]map[uint64]*[setBlock / 64]uint64)
		}
		s.uploaders[uploader] = blocks
	}
	bits := blocks[number/setBlock]
	if bits == nil {
		bits = new([setBlock / 64]uint64)
		blocks[number/setBlock] = bits
	}
	bits[number%setBlock/64] |= 1 << (number % 64)
}

// Has says whether a segment is in the set.
func (s *SegmentSet) Has(uploader GatewayID, number uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	bits := s.uploaders[uploader][number/setBlock]
	return bits != nil && bits[number%setBlock/64]&(1<<(number%64)) != 0
}
