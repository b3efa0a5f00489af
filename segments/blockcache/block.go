package blockcache

import (
	"sync"
	"sync/atomic"
)

// block is the bytes of a range of an object, fewer than asked for only at the object's end. Once nobody refers to it,
// its memory is used for another one; the block itself never is.
type block struct {
	data   []byte
	from   *buffers     // where the memory goes back to; nil: to nobody
	refers atomic.Int32 // the cache, and all who wait for it or copy from it
}

// acquire refers to a block that was found, unless its last reference is gone by now.
func (b *block) acquire() bool {
	for {
		n := b.refers.Load()
		if n == 0 {
			return false
		}
		if b.refers.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (b *block) release() {
	if b.refers.Add(-1) == 0 && b.from != nil {
		b.from.put(b.data)
	}
}

// weight is about how much memory it takes, in bytes.
func (b *block) weight() int64 { return int64(cap(b.data)) + entryBytes }

// copyTo copies from a place in the block on, as far as it reaches.
func (b *block) copyTo(into []byte, at int) int {
	if at >= len(b.data) {
		return 0
	}
	return copy(into, b.data[at:])
}

// spareBuffers is how many buffers that nobody uses are kept for the next blocks: memory that the system hands
// out for the first time costs several times as much as memory that was used before.
const spareBuffers = 16

// buffers hands out memory for whole blocks.
type buffers struct {
	size int // bytes

	mu    sync.Mutex
	spare [][]byte
}

func (s *buffers) get() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.spare)
	if n == 0 {
		return make([]byte, s.size)
	}
	b := s.spare[n-1]
	s.spare[n-1] = nil
	s.spare = s.spare[:n-1]
	return b
}

func (s *buffers) put(b []byte) {
	if cap(b) < s.size {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spare) < spareBuffers {
		s.spare = append(s.spare, b[:s.size])
	}
}

// clear lets go of all of them.
func (s *buffers) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.spare)
	s.spare = nil
}
