package gateway

import "container/heap"

// unfolded orders partitions by their first change that no checkpoint has.
type unfolded struct{ list unfoldedHeap }

type unfoldedEntry struct {
	since uint64
	held  *held
}

type unfoldedHeap []unfoldedEntry

func (h unfoldedHeap) Len() int           { return len(h) }
func (h unfoldedHeap) Less(i, j int) bool { return h[i].since < h[j].since }
func (h unfoldedHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *unfoldedHeap) Push(x any)        { *h = append(*h, x.(unfoldedEntry)) }
func (h *unfoldedHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = unfoldedEntry{}
	*h = old[:len(old)-1]
	return last
}

func (u *unfolded) push(h *held) { heap.Push(&u.list, unfoldedEntry{h.state.Unfolded(), h}) }

// count is how many partitions have changes, with some that had.
func (u *unfolded) count() int { return len(u.list) }

// oldest is the partition to checkpoint next, of those that want says, or nil. Entries
// that no longer hold, and those it does not want, are dropped: they come back by push.
func (u *unfolded) oldest(want func(*held) bool) *held {
	for len(u.list) > 0 {
		if top := u.list[0]; top.held.state.Unfolded() == top.since && want(top.held) {
			return top.held
		}
		heap.Pop(&u.list)
	}
	return nil
}

// journalRows keeps the sizes of the journal's rows that are not checkpointed.
type journalRows struct {
	first uint64 // sequence of the first
	sizes []int
	bytes int
}

func (r *journalRows) add(size int) {
	r.sizes = append(r.sizes, size)
	r.bytes += size
}

func (r *journalRows) count() int { return len(r.sizes) }

// dropBelow returns how many bytes it drops.
func (r *journalRows) dropBelow(sequence uint64) (dropped int) {
	for r.first < sequence && len(r.sizes) > 0 {
		r.bytes -= r.sizes[0]
		dropped += r.sizes[0]
		r.sizes = r.sizes[1:]
		r.first++
	}
	return dropped
}
