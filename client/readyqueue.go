package client

import "sync"

// readyQueue holds partitions with something to do, each at most once, first come, first served.
type readyQueue struct {
	mu     sync.Mutex
	wake   sync.Cond
	queue  []*partition
	closed bool
}

func (q *readyQueue) init() { q.wake.L = &q.mu }

func (q *readyQueue) push(p *partition) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p.queued || q.closed {
		return
	}
	p.queued = true
	q.queue = append(q.queue, p)
	q.wake.Signal()
}

// pop waits for a partition; nil when the queue is closed.
func (q *readyQueue) pop() *partition {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.queue) == 0 && !q.closed {
		q.wake.Wait()
	}
	if q.closed {
		return nil
	}
	p := q.queue[0]
	q.queue = q.queue[1:]
	p.queued = false
	return p
}

func (q *readyQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake.Broadcast()
}
