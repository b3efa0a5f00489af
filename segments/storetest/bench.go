package storetest

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/varvelog/varve/segments"
)

// BenchmarkObjects puts and gets objects of 8 MiB, of slices of 1 MiB as a busy gateway has
// them, by 1, 4 and 16 callers. Beside MB/s it reports the CPU seconds that this
// process (the client, that is) takes for a GiB.
func BenchmarkObjects(b *testing.B, store segments.Store) {
	const slice, slices = 1 << 20, 8
	parts := make([][]byte, slices)
	for i := range parts {
		parts[i] = make([]byte, slice)
		for j := range parts[i] {
			parts[i][j] = byte(j * (i + 3) >> 3)
		}
	}
	body := segments.NewBody(parts...)
	var number atomic.Int64
	key := func(n int64) string { return fmt.Sprintf("bench/%012d", n) }
	run := func(name string, callers int, call func(context.Context) error) {
		b.Run(fmt.Sprintf("%s/%d", name, callers), func(b *testing.B) {
			b.SetBytes(body.Size())
			b.SetParallelism(callers) // times GOMAXPROCS, which this divides out
			var running atomic.Int64
			before := cpuTime()
			b.RunParallel(func(pb *testing.PB) {
				if running.Add(1) > int64(callers) {
					return
				}
				for pb.Next() {
					if err := call(b.Context()); err != nil {
						b.Error(err)
						return
					}
				}
			})
			gib := float64(body.Size()) * float64(b.N) / (1 << 30)
			b.ReportMetric((cpuTime()-before).Seconds()/gib, "cpu-s/GiB")
		})
	}
	for _, callers := range []int{1, 4, 16} {
		run("Put", callers, func(ctx context.Context) error { return store.Put(ctx, key(number.Add(1)), body) })
		var next atomic.Int64
		run("Get", callers, func(ctx context.Context) error {
			_, _, err := store.Get(ctx, key(next.Add(1)%number.Load()+1), 0, -1)
			return err
		})
	}
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
