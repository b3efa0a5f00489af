package batch_test

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/varvelog/varve/segments/batch"
	"pgregory.net/rapid"
)

// The hashes are those that Kafka's own tests expect of its murmur2.
func TestPartitionForKeyVectors(t *testing.T) {
	const partitions = 1<<31 - 1 // shows nearly all bits of the hash
	for key, hash := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		want := (hash & 0x7fffffff) % partitions
		if got := batch.PartitionForKey([]byte(key), partitions); got != want {
			t.Errorf("PartitionForKey(%q) = %d, want %d", key, got, want)
		}
	}
}

func TestPartitionForKeyAgreesWithKgo(t *testing.T) {
	kafka := kgo.StickyKeyPartitioner(nil).ForTopic("topic")
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOf(rapid.Byte()).Draw(t, "key")
		partitions := rapid.Int32Range(1, 10_000).Draw(t, "partitions")
		want := kafka.Partition(&kgo.Record{Key: append([]byte{}, key...)}, int(partitions))
		if got := batch.PartitionForKey(key, partitions); int(got) != want {
			t.Fatalf("partition %d, kgo says %d", got, want)
		}
	})
}
