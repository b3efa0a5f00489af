package segments_test

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/segments"
)

// sumSkip is what the CRCs of the batches here do not cover.
const sumSkip = 21

// summed returns a segment of batches of these sizes, whose builder knows their CRCs.
func summed(t rapid.TB, sizes []int) *segments.Object {
	random := rand.NewChaCha8([32]byte{1})
	table := crc32.MakeTable(crc32.Castagnoli)
	b := segments.NewBuilder("c-00000000000000000000", "gw-1", 1)
	b.Checked(sumSkip)
	for i, size := range sizes {
		data := make([]byte, size)
		random.Read(data)
		binary.BigEndian.PutUint32(data, uint32(i))
		info := segments.BatchInfo{Offsets: 1, Records: 1, ExpectedOffset: -1, CRC: crc32.Checksum(data[sumSkip:], table)}
		if err := b.Add(segments.SpanID{Partition: int32(i % 3)}, data, info); err != nil {
			t.Fatal(err)
		}
	}
	object, err := b.Build(func(segments.SpanID) uint64 { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	return object
}

func TestSumOfKnownSums(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(sumSkip+1, 300), rapid.IntRange(60<<10, 70<<10), rapid.IntRange(1<<20, 2<<20)), 1, 6).Draw(r, "sizes")
		object := summed(r, sizes)
		want := crc32.Checksum(segments.Bytes(object), crc32.MakeTable(crc32.Castagnoli))
		for range 2 {
			if sum := segments.CRC32C(object); sum != want {
				r.Fatalf("CRC32C = %x, want %x", sum, want)
			}
		}
	})
}

// A bit that flips after the batch was checked does not agree with the first sum, which is what the store holds the object
// against; the next one is of what there is.
func TestSumOfFlippedBit(t *testing.T) {
	object := summed(t, []int{1 << 20, 100 << 10})
	object.Slices()[1][1<<19] ^= 4
	want := crc32.Checksum(segments.Bytes(object), crc32.MakeTable(crc32.Castagnoli))
	if sum := segments.CRC32C(object); sum == want {
		t.Error("the flipped bit is in the first sum: it was not made of what was checked")
	}
	if sum := segments.CRC32C(object); sum != want {
		t.Errorf("CRC32C asked for again = %x, want that of the bytes, %x", sum, want)
	}
}
