package gateway

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varvelog/varve/segments"
)

// storeCounts is what one kind of call to the store came to. bytes are those of
// objects written and read.
type storeCounts struct {
	calls, bytes, errors atomic.Uint64
	time                 prometheus.Observer
}

// storeMeters count calls to the object store.
type storeMeters struct {
	put, get, delete, list storeCounts
}

func (s *storeMeters) of(op segments.Op) *storeCounts {
	switch op {
	case segments.OpPut:
		return &s.put
	case segments.OpGet:
		return &s.get
	case segments.OpDelete:
		return &s.delete
	}
	return &s.list
}

// registerStore makes the metrics of calls to the store.
func (m *Meters) registerStore() {
	times := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: "object_call_seconds",
		Help: "Calls to the object store.", Buckets: callBuckets}, []string{"op"})
	m.registry.MustRegister(times)
	for _, op := range []segments.Op{segments.OpPut, segments.OpGet, segments.OpDelete, segments.OpList} {
		c, labels := m.store.of(op), prometheus.Labels{"op": string(op)}
		c.time = times.WithLabelValues(string(op))
		m.counterWith("object_calls_total", "Calls to the object store.", labels, &c.calls)
		m.counterWith("object_bytes_total", "Bytes of objects written and read.", labels, &c.bytes)
		m.counterWith("object_errors_total", "Calls to the object store that failed; an object that is absent, or exists already, is an answer.",
			labels, &c.errors)
	}
}

// observeStore returns the store with its calls counted.
func (m *Meters) observeStore(s segments.Store) segments.Store {
	return segments.Observe(s, segments.Observer{End: m.storeCall})
}

func (m *Meters) storeCall(op segments.Op, bytes int64, took time.Duration, err error) {
	c := m.store.of(op)
	c.calls.Add(1)
	c.bytes.Add(uint64(bytes))
	c.time.Observe(took.Seconds())
	if err != nil && !errors.Is(err, segments.ErrNotFound) && !errors.Is(err, segments.ErrExists) {
		c.errors.Add(1)
	}
}
