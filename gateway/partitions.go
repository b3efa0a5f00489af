package gateway

import (
	"sync"
	"sync/atomic"

	"github.com/varvelog/varve/metadata"
)

// partitions holds what this gateway knows of each partition that somebody asked
// for: the view that readers see, and who waits for the next one.
type partitions struct {
	mu   sync.RWMutex
	list map[metadata.PartitionID]*partition
}

// partition is one of them. Its view is nil until it was read or taken.
type partition struct {
	all  *partitions
	id   metadata.PartitionID
	view atomic.Pointer[metadata.View]
	// owned says that this gateway sequences it: its view is then the truth.
	owned atomic.Bool

	mu      sync.Mutex
	waiting map[chan struct{}]struct{}
}

func newPartitions() *partitions {
	return &partitions{list: make(map[metadata.PartitionID]*partition)}
}

func (s *partitions) get(id metadata.PartitionID) *partition {
	s.mu.RLock()
	p := s.list[id]
	s.mu.RUnlock()
	if p != nil {
		return p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p = s.list[id]; p == nil {
		p = &partition{all: s, id: id}
		s.list[id] = p
	}
	return p
}

// release forgets a partition that is closed for ever, unless its sequencer still holds
// it, or somebody waits for it: the last who does releases it.
func (s *partitions) release(id metadata.PartitionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.list[id]
	if p == nil || p.owned.Load() {
		return
	}
	if v := p.view.Load(); v == nil || !v.Closed {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) == 0 {
		delete(s.list, id)
	}
}

// publish shows a new view and wakes who waits for it.
func (p *partition) publish(v *metadata.View) {
	p.view.Store(v)
	p.mu.Lock()
	defer p.mu.Unlock()
	for wake := range p.waiting {
		select {
		case wake <- struct{}{}:
		default: // it is awake already
		}
	}
}

// subscribe sends to wake, without blocking, at each publish, until cancel is
// called. wake has room for one.
func (p *partition) subscribe(wake chan struct{}) (cancel func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == nil {
		p.waiting = make(map[chan struct{}]struct{})
	}
	p.waiting[wake] = struct{}{}
	return func() {
		p.mu.Lock()
		delete(p.waiting, wake)
		p.mu.Unlock()
		if v := p.view.Load(); v != nil && v.Closed {
			p.all.release(p.id)
		}
	}
}
