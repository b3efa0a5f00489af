package client

import (
	"cmp"
	"container/heap"
	"context"
)

// Bounds for the messages that a merge holds, in bytes: of all partitions together, and the least of one.
const (
	mergeBytes        = 64 << 20
	mergeMinimumBytes = 64 << 10
	// mergeMessages is how many messages of a partition can be in memory: one read, one waiting, one
	// being received.
	mergeMessages = 3
)

// merge yields the records of all partitions by timestamp. Each partition has a stream of its own, so that
// one that is far ahead waits without holding up the rest.
func (k *Consumer) merge(ctx context.Context, start []cursor, yield func(Record, error) bool) {
	ctx, cancel := context.WithCancel(ctx)
	narrow := *k
	if n := len(start); n > 0 {
		narrow.cfg.MaxBytes = min(k.cfg.MaxBytes, max(mergeMinimumBytes, mergeBytes/mergeMessages/n))
	}
	d := k.decoder(start)
	var sources []*source
	defer func() {
		cancel()
		for _, s := range sources {
			s.feed.wait()
		}
	}()
	for _, c := range start {
		sources = append(sources, &source{partition: c.partition, decoder: d, feed: narrow.feed(ctx, []cursor{c})})
	}
	var heads sourceHeap
	for _, s := range sources {
		if s.fill() {
			heads = append(heads, s)
		} else if s.err != nil {
			yield(Record{}, s.err)
			return
		}
	}
	heap.Init(&heads)
	for len(heads) > 0 {
		s := heads[0]
		if !yield(s.records[s.at], nil) {
			return
		}
		s.at++
		switch {
		case s.fill():
			heap.Fix(&heads, 0)
		case s.err != nil:
			yield(Record{}, s.err)
			return
		default:
			heap.Pop(&heads)
		}
	}
}

// source is one partition of a merge: the records of one message, and where it is in them.
type source struct {
	partition int32
	decoder   *decoder
	feed      *feed
	records   []Record
	at        int
	err       error
}

// fill sees to a record at s.at, and returns false at the end, or with err.
func (s *source) fill() bool {
	for s.at == len(s.records) {
		m, ok := <-s.feed.messages
		if !ok {
			s.err = s.feed.err
			return false
		}
		clear(s.records)
		s.records, s.at = s.records[:0], 0
		_, damage := s.decoder.records(m, func(r Record) bool {
			s.records = append(s.records, r)
			return true
		})
		if damage != nil {
			s.err = damage
			return false
		}
	}
	return true
}

// sourceHeap has the oldest next record on top, ties by partition.
type sourceHeap []*source

func (h sourceHeap) Len() int      { return len(h) }
func (h sourceHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

func (h sourceHeap) Less(i, j int) bool {
	a, b := h[i], h[j]
	if c := a.records[a.at].Timestamp.Compare(b.records[b.at].Timestamp); c != 0 {
		return c < 0
	}
	return cmp.Less(a.partition, b.partition)
}

// Push is never called: sources only leave.
func (h *sourceHeap) Push(x any) { *h = append(*h, x.(*source)) }

func (h *sourceHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}
