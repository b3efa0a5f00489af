package gateway

import (
	"context"
	"sync"

	"github.com/varvelog/varve/metadata"
)

// latest reads views from the table as of a moment after each call. Those who wait share a
// read, but never one that had begun before they came.
type latest struct {
	g *Gateway

	mu    sync.Mutex
	reads map[metadata.PartitionID]*latestRead // those under way
}

// latestRead is one read of a partition.
type latestRead struct {
	done chan struct{} // closed when view and err are set
	view *metadata.View
	err  error
	next *latestRead // for those who came since it began; nil: nobody has
}

func newLatest(g *Gateway) *latest {
	return &latest{g: g, reads: make(map[metadata.PartitionID]*latestRead)}
}

// read reads a partition.
func (l *latest) read(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	r := l.join(id)
	select {
	case <-r.done:
		return r.view, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// join begins a read, or waits for the one after that which is under way.
func (l *latest) join(id metadata.PartitionID) *latestRead {
	l.mu.Lock()
	defer l.mu.Unlock()
	running := l.reads[id]
	if running == nil {
		r := &latestRead{done: make(chan struct{})}
		l.reads[id] = r
		go l.run(id, r)
		return r
	}
	if running.next == nil {
		running.next = &latestRead{done: make(chan struct{})}
	}
	return running.next
}

// run reads for whoever waits, until nobody does.
func (l *latest) run(id metadata.PartitionID, r *latestRead) {
	for r != nil {
		limit, cancel := context.WithTimeout(l.g.mirrors.lifetime(), peerTime)
		r.view, r.err = l.g.readTable(limit, id)
		cancel()
		close(r.done)
		l.mu.Lock()
		if r = r.next; r != nil {
			l.reads[id] = r
		} else {
			delete(l.reads, id)
		}
		l.mu.Unlock()
	}
}
