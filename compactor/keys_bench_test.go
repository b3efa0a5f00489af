package compactor

import (
	"context"
	"fmt"
	"testing"

	"github.com/varvelog/varve/segments/batch"
)

// BenchmarkCleanPartition compacts 200,000 records of 100 bytes, of 20,000 keys, in batches of 100; with a map that
// holds all keys, and with one that holds a quarter of them.
func BenchmarkCleanPartition(b *testing.B) {
	for _, c := range []struct {
		name  string
		codec batch.Codec
		bytes int64
	}{{"none", batch.None, 1 << 20}, {"zstd", batch.Zstd, 1 << 20}, {"none, small map", batch.None, 20_000 * slotBytes / 3}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var bytes, passes int64
			for range b.N {
				b.StopTimer()
				l := newKeyLog(b)
				for i := range 20 {
					batches := make([][]batch.Record, 100)
					for j := range batches {
						for n := range 100 {
							at := (i*10_000 + j*100 + n) * 7919 % 20_000
							batches[j] = append(batches[j], batch.Record{Timestamp: l.now, Key: fmt.Appendf(nil, "key %d", at), Value: make([]byte, 90)})
						}
					}
					l.append(c.codec, batches...)
				}
				b.StartTimer()
				r, err := CleanPartition(context.Background(), l.deps(), KeyConfig{MapBytes: c.bytes}, keyPartition, KeyRules{}, true)
				if err != nil || r.Dropped < 170_000 {
					b.Fatal(r, err)
				}
				bytes, passes = bytes+r.BytesRead, passes+int64(r.Passes)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/200_000, "ns/record")
			b.ReportMetric(float64(passes)/float64(b.N), "passes")
			b.ReportMetric(float64(bytes)/float64(b.N)/(1<<20), "MiB-read")
		})
	}
}
