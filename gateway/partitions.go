package gateway

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
)

// partitions holds what this gateway knows of each partition that somebody asked
// for: the view that readers see, and who waits for the next one.
type partitions struct {
	g    *Gateway
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
	// used is when a reader asked for it last, in Unix nanoseconds.
	used atomic.Int64

	mu      sync.Mutex
	waiting map[waiter]struct{}

	// mirror is how the view is kept up to date while another gateway sequences it; the
	// mirrors' own.
	mirror mirrorState
}

// waiter is told that a partition has a new view. It must not block.
type waiter interface {
	changed(*partition)
	// remote says that it waits for another gateway.
	remote() bool
}

// wakeUp is a waiter that wants to know that something changed, not what.
type wakeUp chan struct{}

func (w wakeUp) changed(*partition) {
	select {
	case w <- struct{}{}:
	default: // it is awake already
	}
}

func (w wakeUp) remote() bool { return false }

func newPartitions(g *Gateway) *partitions {
	return &partitions{g: g, list: make(map[metadata.PartitionID]*partition)}
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

// known lists the partitions that somebody asked for.
func (s *partitions) known() []*partition {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*partition, 0, len(s.list))
	for _, p := range s.list {
		list = append(list, p)
	}
	return list
}

// release forgets a partition that is closed for ever, unless its sequencer still holds
// it, or somebody waits for it: the last who does releases it.
func (s *partitions) release(id metadata.PartitionID) {
	if p := s.remove(id); p != nil {
		s.g.mirrors.drop(p)
	}
}

// remove takes it off the list; nil if it stays.
func (s *partitions) remove(id metadata.PartitionID) *partition {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.list[id]
	if p == nil || p.owned.Load() {
		return nil
	}
	if v := p.view.Load(); v == nil || !v.Closed {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) > 0 {
		return nil
	}
	delete(s.list, id)
	return p
}

// peek returns a partition that somebody asked for, or nil.
func (s *partitions) peek(id metadata.PartitionID) *partition {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.list[id]
}

// own begins this gateway's time as the partition's sequencer.
func (p *partition) own(v *metadata.View) {
	p.owned.Store(true)
	p.publish(v)
	p.all.g.mirrors.drop(p)
}

// disown ends it. What readers see stays as it is; those who wait for more hear of it
// from whoever sequences it next.
func (p *partition) disown() {
	p.owned.Store(false)
	p.nudge()
	if p.hasFollowers() {
		p.all.g.mirrors.want(p)
	}
}

// end shows that the partition is closed for ever, though nobody sequences it.
func (p *partition) end() {
	v := metadata.View{Partition: p.id}
	if was := p.view.Load(); was != nil {
		v = *was
	}
	v.Closed = true
	p.publish(&v)
}

// nudge has those who watch from other gateways look whether this is the one to watch.
func (p *partition) nudge() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w := range p.waiting {
		if w.remote() {
			w.changed(p)
		}
	}
}

// hasWaiters says whether anybody waits for more, here or on another gateway.
func (p *partition) hasWaiters() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.waiting) > 0
}

// publish shows a view, unless a newer one is shown, and wakes who waits for it.
func (p *partition) publish(v *metadata.View) {
	if p.owned.Load() {
		defer p.all.g.upkeep.committed(v)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !v.Newer(p.view.Load()) && !seeded.Has(seeded.OlderView) {
		return
	}
	p.view.Store(v)
	for w := range p.waiting {
		w.changed(p)
	}
}

// subscribe tells w of each new view until cancel is called.
func (p *partition) subscribe(w waiter) (cancel func()) {
	p.mu.Lock()
	if p.waiting == nil {
		p.waiting = make(map[waiter]struct{})
	}
	p.waiting[w] = struct{}{}
	p.mu.Unlock()
	if !w.remote() && !p.owned.Load() {
		p.all.g.mirrors.want(p)
	}
	return func() {
		p.mu.Lock()
		delete(p.waiting, w)
		p.mu.Unlock()
		p.touch()
		if v := p.view.Load(); v != nil && v.Closed {
			p.all.release(p.id)
		}
	}
}

// hasFollowers says whether somebody on this gateway waits for more.
func (p *partition) hasFollowers() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w := range p.waiting {
		if !w.remote() {
			return true
		}
	}
	return false
}

// touch notes that a reader asked for the partition.
func (p *partition) touch() { p.used.Store(time.Now().UnixNano()) }

// unused is for how long no reader asked for it.
func (p *partition) unused() time.Duration {
	return time.Duration(time.Now().UnixNano() - p.used.Load())
}
