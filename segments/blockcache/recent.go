package blockcache

import (
	"slices"
	"sync"
)

// recent keeps what was fetched last, in the order in which it came, until its bytes are used up.
type recent struct {
	limit int64 // bytes
	// leave is given what has to go, with the reference to it.
	leave func(place, *block)

	mu    sync.Mutex
	list  map[place]*block
	order []place // of the list, oldest first
	bytes int64
}

// add keeps a block, and the reference that comes with it.
func (r *recent) add(p place, b *block) {
	r.mu.Lock()
	if r.list[p] != nil { // it was fetched twice: who gave up the first fetch came back
		r.mu.Unlock()
		b.release()
		return
	}
	r.list[p] = b
	r.order = append(r.order, p)
	r.bytes += b.weight()
	var places []place
	var blocks []*block
	for r.bytes > r.limit && len(r.order) > 0 {
		oldest := r.order[0]
		r.order = r.order[1:]
		b := r.list[oldest]
		delete(r.list, oldest)
		r.bytes -= b.weight()
		places, blocks = append(places, oldest), append(blocks, b)
	}
	r.mu.Unlock()
	for i, p := range places {
		r.leave(p, blocks[i])
	}
}

// acquire finds a block and refers to it; nil if it is not there.
func (r *recent) acquire(p place) *block {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.list[p]
	if b != nil {
		b.acquire() // there is one reference at least: that of the list
	}
	return b
}

func (r *recent) has(p place) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.list[p] != nil
}

// remove lets go of a block.
func (r *recent) remove(p place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b := r.list[p]; b != nil {
		delete(r.list, p)
		at := slices.Index(r.order, p) // damage is rare
		r.order = slices.Delete(r.order, at, at+1)
		r.bytes -= b.weight()
		b.release()
	}
}

func (r *recent) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p, b := range r.list {
		delete(r.list, p)
		b.release()
	}
	r.order, r.bytes = nil, 0
}

func (r *recent) weight() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}
