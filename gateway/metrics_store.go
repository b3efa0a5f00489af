package gateway

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varvelog/varve/segments"
)

// storeOp is one of the calls of a segments.Store.
type storeOp uint8

const (
	storePut storeOp = iota
	storeGet
	storeDelete
	storeList
	storeOps
)

func (o storeOp) String() string {
	return [...]string{"put", "get", "delete", "list"}[o]
}

// storeCounts is what one kind of call to the store came to. bytes are those of
// objects written and read.
type storeCounts struct {
	calls, bytes, errors atomic.Uint64
}

// registerStore makes the metrics of calls to the store.
func (m *Meters) registerStore() {
	times := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: "object_call_seconds",
		Help: "Calls to the object store.", Buckets: callBuckets}, []string{"op"})
	m.registry.MustRegister(times)
	for i := range m.store {
		op := storeOp(i).String()
		labels := prometheus.Labels{"op": op}
		m.storeTime[i] = times.WithLabelValues(op)
		m.counterWith("object_calls_total", "Calls to the object store.", labels, &m.store[i].calls)
		m.counterWith("object_bytes_total", "Bytes of objects written and read.", labels, &m.store[i].bytes)
		m.counterWith("object_errors_total", "Calls to the object store that failed; an object that is absent, or exists already, is an answer.",
			labels, &m.store[i].errors)
	}
}

// observeStore returns the store with its calls counted.
func (m *Meters) observeStore(s segments.Store) segments.Store {
	return &observedStore{Store: s, meters: m}
}

func (m *Meters) storeCall(op storeOp, bytes int64, began time.Time, err error) {
	c := &m.store[op]
	c.calls.Add(1)
	if err == nil {
		c.bytes.Add(uint64(bytes))
	} else if !errors.Is(err, segments.ErrNotFound) && !errors.Is(err, segments.ErrExists) {
		c.errors.Add(1)
	}
	m.storeTime[op].Observe(time.Since(began).Seconds())
}

type observedStore struct {
	segments.Store
	meters *Meters
}

func (s *observedStore) Put(ctx context.Context, key string, body segments.Body) error {
	began := time.Now()
	err := s.Store.Put(ctx, key, body)
	s.meters.storeCall(storePut, body.Size(), began, err)
	return err
}

func (s *observedStore) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	began := time.Now()
	data, size, err := s.Store.Get(ctx, key, offset, length)
	s.meters.storeCall(storeGet, int64(len(data)), began, err)
	return data, size, err
}

func (s *observedStore) Delete(ctx context.Context, key string) error {
	began := time.Now()
	err := s.Store.Delete(ctx, key)
	s.meters.storeCall(storeDelete, 0, began, err)
	return err
}

func (s *observedStore) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	began := time.Now()
	list, err := s.Store.List(ctx, prefix, after, limit)
	s.meters.storeCall(storeList, 0, began, err)
	return list, err
}
