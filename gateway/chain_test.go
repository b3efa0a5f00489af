package gateway

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
)

// TestChain has references of one uploader judged by a partition, in any order, with answers that
// are lost: each gets its own verdict in the end, none is pushed out of the answers that are kept.
func TestChain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			c        chain
			p        = metadata.NewPartition(metadata.PartitionID{})
			previous = make(map[uint64]uint64)
			ready    []uint64
			judged   = make(map[uint64]int64) // the first verdict
			number   uint64
			settled  int
			sequence uint64
		)
		uploaded := func(n uint64) {
			if c.enter(n, false, time.Now(), func() { ready = append(ready, n) }) {
				ready = append(ready, n)
			}
		}
		var uploading []uint64
		step := func(fresh bool) {
			switch {
			case fresh && rapid.Bool().Draw(t, "seal"):
				number += rapid.Uint64Range(1, 3).Draw(t, "skip") // segments without the partition
				previous[number] = c.join(number)
				uploading = append(uploading, number)
			case len(uploading) > 0 && rapid.Bool().Draw(t, "upload"):
				i := rapid.IntRange(0, len(uploading)-1).Draw(t, "which")
				n := uploading[i]
				uploading = slices.Delete(uploading, i, i+1)
				uploaded(n)
			case len(ready) > 0:
				i := rapid.IntRange(0, len(ready)-1).Draw(t, "ask")
				n := ready[i]
				verdict, change := p.Judge(&metadata.Reference{Uploader: "u", Number: n, Previous: previous[n],
					Batches: []metadata.Batch{{Size: 10, Offsets: 1, Records: 1, ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}}})
				if verdict.Status == metadata.Waiting {
					return
				}
				if change != nil {
					sequence++
					if err := p.Apply(change, sequence); err != nil {
						t.Fatal(err)
					}
				}
				if len(verdict.Batches) != 1 {
					t.Fatalf("the answer to number %d is no longer kept; open from %d on", n, c.open[0].number)
				}
				if first, again := judged[n]; again && first != verdict.Batches[0].Offset {
					t.Fatalf("number %d: offset %d, and then %d", n, first, verdict.Batches[0].Offset)
				}
				judged[n] = verdict.Batches[0].Offset
				if fresh && rapid.Bool().Draw(t, "lost") {
					return
				}
				ready = slices.Delete(ready, i, i+1)
				settled++
				for _, send := range c.settle(n, time.Now()) {
					send()
				}
			}
		}
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			step(true)
		}
		for _, n := range uploading {
			uploaded(n)
		}
		uploading = nil
		for limit := 0; settled < len(previous) && limit < 100*len(previous)+100; limit++ {
			step(false)
		}
		if settled != len(previous) || len(c.open) != 0 {
			t.Fatalf("%d of %d are settled, %d are open", settled, len(previous), len(c.open))
		}
	})
}

// TestChainAlone holds a reference that is judged by number back until none before it is open.
func TestChainAlone(t *testing.T) {
	var c chain
	for n := range uint64(3) {
		c.join(n + 1)
	}
	sent := false
	if c.enter(3, true, time.Now(), func() { sent = true }) || !c.enter(1, false, time.Now(), nil) || !c.enter(2, false, time.Now(), nil) {
		t.Fatal("the wrong ones may go")
	}
	if sends := c.settle(2, time.Now()); len(sends) != 0 {
		t.Fatal("it goes before the first")
	}
	for _, send := range c.settle(1, time.Now()) {
		send()
	}
	if !sent {
		t.Fatal("it does not go")
	}
}
