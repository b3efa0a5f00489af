package tabletest

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varvelog/varve/metadata"
)

// Benchmark measures puts of rows of 1 KB, as a journal gets them: one after the other, and
// 64 at a time. It reports p50-µs and p99-µs of a put, and puts/s.
func Benchmark(b *testing.B, open func(b *testing.B) metadata.Table) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			benchmarkPuts(b, open(b), writers)
		})
	}
}

func benchmarkPuts(b *testing.B, table metadata.Table, writers int) {
	value := make([]byte, 1024)
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for w := range writers {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(b.N) {
					return
				}
				k := metadata.Key{Partition: fmt.Sprintf("journal/%d", w), Sort: fmt.Sprintf("%016x", i)}
				r := metadata.Row{Key: k, Stamp: metadata.Stamp{Epoch: 1}, Nonce: metadata.NewNonce(), Value: value}
				began := time.Now()
				if err := table.Put(b.Context(), r, metadata.IfAbsent()); err != nil {
					b.Error(err)
					return
				}
				took[i] = time.Since(began)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
}
