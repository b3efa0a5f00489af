package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// latencies gathers durations from 1 µs to 10 minutes, to three digits. It is safe for concurrent use.
type latencies struct {
	mu        sync.Mutex
	histogram *hdrhistogram.Histogram
}

func newLatencies() *latencies {
	return &latencies{histogram: hdrhistogram.New(1, int64(10*time.Minute/time.Microsecond), 3)}
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	us := max(1, min(d.Microseconds(), l.histogram.HighestTrackableValue()))
	// It fails for values out of range only.
	_ = l.histogram.RecordValue(us)
}

// pool adds what another one gathered, which has ended.
func (l *latencies) pool(other *latencies) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Both have one range: nothing is dropped.
	_ = l.histogram.Merge(other.histogram)
}

// reset forgets what was gathered.
func (l *latencies) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.histogram.Reset()
}

// quantiles are milliseconds.
type quantiles struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p99_9_ms"`
	Max   float64 `json:"max_ms"`
}

func (l *latencies) quantiles() quantiles {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := func(q float64) float64 { return float64(l.histogram.ValueAtQuantile(q)) / 1000 }
	return quantiles{l.histogram.TotalCount(), at(50), at(99), at(99.9), float64(l.histogram.Max()) / 1000}
}

func (q quantiles) String() string {
	return fmt.Sprintf("p50 %.2f   p99 %.2f   p99.9 %.2f   max %.2f ms", q.P50, q.P99, q.P999, q.Max)
}
