package compactor

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// meters count what a compactor does.
type meters struct {
	noted                            atomic.Uint64
	objects, batchBytes, replaced    atomic.Uint64
	swapped, moved, asides, failures atomic.Uint64
	damagedEntries                   atomic.Int64
	keyBytes, dropped, tombstones    atomic.Uint64
}

func newMeters(r prometheus.Registerer) *meters {
	m := &meters{}
	if r == nil {
		return m
	}
	count := func(name, help string, v *atomic.Uint64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "varve", Subsystem: "compaction", Name: name, Help: help},
			func() float64 { return float64(v.Load()) }))
	}
	gauge := func(name, help string, f func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "varve", Subsystem: "compaction", Name: name, Help: help}, f))
	}
	count("committed_bytes_total", "Bytes that were committed to partitions that this compactor looks after.", &m.noted)
	count("objects_total", "Merged segments that were put.", &m.objects)
	count("bytes_total", "Bytes of batches in them.", &m.batchBytes)
	count("entries_replaced_total", "Index entries that merged ones took the place of.", &m.replaced)
	count("swaps_total", "Swaps of index entries.", &m.swapped)
	count("moved_total", "Swaps that were refused since the index had moved; they are tried again.", &m.moved)
	count("set_aside_total", "Spans that were found damaged or missing, and stay as they are. Each is named in the log.", &m.asides)
	count("failures_total", "Passes over a partition that could not be finished; they are tried again.", &m.failures)
	count("key_bytes_total", "Bytes of segments that key compaction put.", &m.keyBytes)
	count("key_records_dropped_total", "Records that key compaction took out since a later one has their key.", &m.dropped)
	count("key_tombstones_dropped_total", "Records without a value that key compaction took out when their time had come.", &m.tombstones)
	gauge("damaged_entries", "Spans that are set aside now.", func() float64 { return float64(m.damagedEntries.Load()) })
	gauge("write_amplification", "Bytes written to the bucket for each byte that was committed since the start: 1 without merging.", m.amplification)
	return m
}

// amplification is what uploads, merges and key compaction wrote, over what was uploaded.
func (m *meters) amplification() float64 {
	noted := float64(m.noted.Load())
	if noted == 0 {
		return 1
	}
	return 1 + float64(m.batchBytes.Load()+m.keyBytes.Load())/noted
}
