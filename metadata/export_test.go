package metadata

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// ShrinkLimits makes everything that grows by count small until the test ends.
func ShrinkLimits(t testing.TB, children, page, producers, inline int, chunk int64) {
	was := []int{fanOut, pageAt, maxProducers, inlineProducers}
	wasChunk := minChunk
	fanOut, pageAt, maxProducers, inlineProducers, minChunk = children, page, producers, inline, chunk
	t.Cleanup(func() {
		fanOut, pageAt, maxProducers, inlineProducers, minChunk = was[0], was[1], was[2], was[3], wasChunk
	})
}

// Memory is all that a partition's state decides by, but for its index.
func (p *Partition) Memory() string {
	var b strings.Builder
	fmt.Fprintf(&b, "start %d next %d fence %q closed %v bytes %d sum %x\n", p.start, p.next, p.fence, p.closed, p.bytes, p.ContentSum())
	for _, id := range p.Uploaders() {
		u := p.uploaders[id] // when it was used last is not stored
		fmt.Fprintf(&b, "uploader %s {last:%d answers:%+v}\n", id, u.last, u.answers)
	}
	list := p.byAge()
	for _, s := range list {
		fmt.Fprintf(&b, "producer %d epoch %d used %d changed %s %v\n", s.id, s.epoch, s.used, s.changed, s.batches)
	}
	return b.String()
}

// AllEntries reads the whole index.
func (v *View) AllEntries(ctx context.Context, index Index) ([]Entry, error) {
	var all []Entry
	list := v.pieces()
	for len(list) > 0 {
		p := list[0]
		list = list[1:]
		if p.entry != nil {
			all = append(all, *p.entry)
			continue
		}
		inner, err := v.open(ctx, index, p)
		if err != nil {
			return nil, err
		}
		list = slices.Concat(inner, list)
	}
	return all, nil
}

// Height is how many levels the view's tree has.
func (v *View) Height() int { return len(v.Levels) }

// BatchSum is a batch's content hash.
func BatchSum(b *Batch, offset int64) uint64 { return batchSum(b, offset) }

// JournalKey names a journal's row.
func JournalKey(id GatewayID, sequence uint64) Key { return journalKey(id, sequence) }

// LeaseKey names a lease row.
func LeaseKey(p PartitionID) Key { return leaseKey(p) }

// MaxProducers is the cap on producer states as it stands.
func MaxProducers() int { return maxProducers }

// OneAtATime has pages of a journal read one after the other, by the goroutine of who asks.
func (j *Journals) OneAtATime() *Journals {
	j.atOnce = 1
	return j
}

// Kept is what is known of a journal.
func (j *Journals) Kept(id GatewayID) *SealedJournal {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.list[id].have
}

// Len is how many journals are kept.
func (j *Journals) Len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.list)
}

// Before counts the rows of a checkpoint before its lease row.
func (c *Checkpoint) Before() int { return len(c.before) }
