package metadata_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
)

func gatewaySet(rt *rapid.T, least int) []metadata.GatewayID {
	n := rapid.IntRange(least, 12).Draw(rt, "gateways")
	born := time.UnixMilli(rapid.Int64Range(0, 1<<41).Draw(rt, "born"))
	set := make([]metadata.GatewayID, n)
	for i := range set {
		set[i] = metadata.NewGatewayID(born) // they differ in their last digits only
	}
	return set
}

func drawPartition(rt *rapid.T) metadata.PartitionID {
	return metadata.PartitionID{Topic: metadata.TopicID{rapid.Byte().Draw(rt, "topic")}, Number: rapid.Int32Range(0, 100_000).Draw(rt, "partition")}
}

// TestRendezvousMoves: a gateway that joins takes partitions, one that leaves gives its own
// away to those who were next, and no other partition moves; the order of the list is nothing.
func TestRendezvousMoves(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		among, id := gatewaySet(rt, 1), drawPartition(rt)
		was := metadata.Rendezvous(id, among)
		if !slices.Contains(among, was) {
			rt.Fatalf("%q of %v", was, among)
		}
		shuffled := rapid.Permutation(among).Draw(rt, "shuffled")
		order := metadata.RendezvousOrder(id, shuffled)
		if got := metadata.Rendezvous(id, shuffled); got != was || order[0] != was {
			rt.Fatalf("%q and %q of a shuffled list, %q before", got, order[0], was)
		}
		joined := metadata.NewGatewayID(time.UnixMilli(0))
		if got := metadata.Rendezvous(id, append(slices.Clone(among), joined)); got != was && got != joined {
			rt.Fatalf("moved from %q to %q when %q joined", was, got, joined)
		}
		for i, left := range order {
			rest := slices.Delete(slices.Clone(order), i, i+1)
			want := was
			if left == was {
				want = ""
				if len(rest) > 0 {
					want = rest[0]
				}
			}
			if got := metadata.Rendezvous(id, rest); got != want {
				rt.Fatalf("%q when %q left, want %q", got, left, want)
			}
		}
	})
	if got := metadata.Rendezvous(metadata.PartitionID{}, nil); got != "" {
		t.Errorf("%q of none", got)
	}
}

// TestRendezvousShares: everybody gets about as much, of few partitions of a topic and of
// many topics alike.
func TestRendezvousShares(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var among []metadata.GatewayID
	for i := range 7 {
		among = append(among, metadata.GatewayID(fmt.Sprintf("g018bcfe5687%010x", i)))
	}
	const partitions = 20_000
	for _, many := range []string{"partitions", "topics"} {
		counts := map[metadata.GatewayID]int{}
		for n := range partitions {
			id := metadata.PartitionID{Topic: metadata.TopicID{9}, Number: int32(n)}
			if many == "topics" {
				id.Number = 0
				for i := range id.Topic {
					id.Topic[i] = byte(random.Uint32())
				}
			}
			counts[metadata.Rendezvous(id, among)]++
		}
		mean := float64(partitions) / float64(len(among))
		for _, g := range among {
			// Five standard deviations of a fair share.
			if off := math.Abs(float64(counts[g]) - mean); off > 5*math.Sqrt(mean) {
				t.Errorf("%s: %s has %d of %d, a fair share is %.0f", many, g, counts[g], partitions, mean)
			}
		}
	}
}

func TestRendezvousAllocatesNothing(t *testing.T) {
	among := []metadata.GatewayID{"g018bcfe5687b0102030405", "g018bcfe5687b0102030406", "g018bcfe5687b0102030407"}
	if n := testing.AllocsPerRun(100, func() { metadata.Rendezvous(timelinePartition, among) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRendezvous(b *testing.B) {
	among := make([]metadata.GatewayID, 16)
	for i := range among {
		among[i] = metadata.NewGatewayID(time.UnixMilli(0))
	}
	for b.Loop() {
		metadata.Rendezvous(timelinePartition, among)
	}
}
