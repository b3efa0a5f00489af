package gateway

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/blockcache"
)

// namespace begins the name of every metric.
const namespace = "varve"

// rowKind says what a row of the table is for, as far as its costs are told apart.
type rowKind uint8

const (
	rowOther      rowKind = iota
	rowCommit             // journal entries
	rowCheckpoint         // the rows of partitions
	rowBeat               // the gateways' own rows
	rowKinds
)

func (k rowKind) String() string {
	return [...]string{"other", "commit", "checkpoint", "beat"}[k]
}

const tableOps = int(metadata.OpRange) + 1

// tableCounts is what calls of one kind to the table came to.
type tableCounts struct {
	calls, bytes, rows atomic.Uint64
	units              atomic.Uint64 // that DynamoDB bills, in millionths
}

// Meters counts what a gateway does, for /metrics and for the Usage call. Counting
// costs an atomic addition or two and never allocates. All methods may be called
// at once.
type Meters struct {
	registry *prometheus.Registry

	store       storeMeters
	table       [tableOps][rowKinds]tableCounts
	tableErrors [tableOps]atomic.Uint64
	tableTime   [tableOps]prometheus.Observer

	flushes, flushedSpans, flushedBytes             atomic.Uint64
	cycles, cycledReferences, cycledRows            atomic.Uint64
	cycledBytes                                     atomic.Uint64
	checkpoints, checkpointedRows, checkpointedByte atomic.Uint64
	appends, appendedRecords, appendedBytes         atomic.Uint64
	recoveredBatches                                atomic.Uint64
	fences, sealings, handovers, lostRecords        atomic.Uint64
	repeats, inheritedRepeats, closings             atomic.Uint64
	swaps, swapsRefused, trims                      atomic.Uint64
	peerCalls, peerBytes                            atomic.Uint64
	blocks                                          blockcache.Counts
	blocksBorrowed, blockBytesBorrowed, blocksLate  atomic.Uint64
	blocksLent, blockBytesLent                      atomic.Uint64
	blocksDamaged, hedges, hedgesWon                atomic.Uint64
	panics, internals                               atomic.Uint64
	following                                       atomic.Int64

	ackTime    [2]prometheus.Observer // by segments.Ack
	lookupTime prometheus.Observer
}

// ackBuckets reach from a lone append on a local disk to a bucket in trouble, in seconds.
var ackBuckets = []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}

// callBuckets are for calls to bucket and table, and for lookups, in seconds.
var callBuckets = []float64{.0001, .0005, .001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}

// NewMeters returns meters that stand at zero, with a registry of their own.
func NewMeters() *Meters {
	m := &Meters{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registerStore()
	m.registerTable()
	m.counter("flushes_total", "Segments that were sealed and handed to an upload.", &m.flushes)
	m.counter("flushed_spans_total", "Spans (partitions) in those segments.", &m.flushedSpans)
	m.counter("flushed_bytes_total", "Bytes of those segments.", &m.flushedBytes)
	m.counter("cycles_total", "Cycles of the sequencer that committed something.", &m.cycles)
	m.counter("cycle_references_total", "References that those cycles judged.", &m.cycledReferences)
	m.counter("cycle_rows_total", "Journal entries that those cycles wrote.", &m.cycledRows)
	m.counter("cycle_bytes_total", "Bytes of those journal entries.", &m.cycledBytes)
	m.counter("checkpoints_total", "Checkpoints of partitions.", &m.checkpoints)
	m.counter("checkpoint_rows_total", "Rows that checkpoints wrote.", &m.checkpointedRows)
	m.counter("checkpoint_bytes_total", "Bytes that checkpoints wrote.", &m.checkpointedByte)
	m.counter("appends_total", "Batches that were taken for an append.", &m.appends)
	m.counter("appended_records_total", "Records in those batches.", &m.appendedRecords)
	m.counter("appended_bytes_total", "Bytes of those batches.", &m.appendedBytes)
	m.counter("recovered_batches_total", "Batches acked as buffered that were recovered after a crash.", &m.recoveredBatches)
	m.counter("fences_total", "Times that another gateway took this one for dead, and it went on under a new id.", &m.fences)
	m.counter("takeovers_total", "Gateways that this one took for dead.", &m.sealings)
	m.counter("handovers_total", "Partitions that were handed over to other gateways.", &m.handovers)
	m.counter("lost_buffered_records_total", "Records acked as buffered by gateways whose disks did not come back, as of their last heartbeats.", &m.lostRecords)
	m.counter("closed_overdue_total", "Ids of gateways that were closed since their disks did not come back.", &m.closings)
	m.counter("repeats_total", "References and batches of producers that came again and got their first answers.", &m.repeats)
	m.counter("inherited_repeats_total", "Those of them whose first answers were given before this gateway took the partition.", &m.inheritedRepeats)
	m.counter("swaps_total", "Swaps of index entries that were sequenced: what merging and compaction by key come to.", &m.swaps)
	m.counter("swaps_refused_total", "Swaps that were refused as what they were to replace had changed; they are tried again.", &m.swapsRefused)
	m.counter("trims_total", "Log starts that were moved, by retention or by hand.", &m.trims)
	m.counter("peer_calls_total", "Calls to other gateways.", &m.peerCalls)
	m.counter("peer_bytes_total", "Bytes of references, verdicts and index entries to and from other gateways. Records travel only between gateways of one zone, and are counted apart.", &m.peerBytes)
	m.counter("block_hits_total", "Parts of segments that were found in memory, a block at most each; the newest segments are not counted.", &m.blocks.Hits)
	m.counter("block_misses_total", "Parts of segments that were not found in memory.", &m.blocks.Misses)
	m.counter("block_joins_total", "Those of them that were on their way for another reader.", &m.blocks.Joined)
	m.counter("block_fetches_total", "Reads from the bucket, or from another gateway of the zone, that brought the others.", &m.blocks.Fetches)
	m.counter("block_fetched_bytes_total", "Bytes that those brought.", &m.blocks.Bytes)
	m.counter("block_damages_total", "Parts of segments that were damaged in memory or on their way, and right in the bucket.", &m.blocksDamaged)
	m.counter("zone_fetches_total", "Those of them that another gateway of the zone answered.", &m.blocksBorrowed)
	m.counter("zone_fetched_bytes_total", "Bytes of records from other gateways of the zone.", &m.blockBytesBorrowed)
	m.counter("zone_late_total", "Reads that another gateway of the zone refused, or did not answer in time, and that went to the bucket.", &m.blocksLate)
	m.counter("zone_lent_total", "Reads that were answered for other gateways of the zone.", &m.blocksLent)
	m.counter("zone_lent_bytes_total", "Bytes of records to other gateways of the zone.", &m.blockBytesLent)
	m.counter("hedged_reads_total", "Reads from the bucket that were late and sent a second time.", &m.hedges)
	m.counter("hedged_reads_won_total", "Those of them whose second try was answered first.", &m.hedgesWon)
	m.counter("panics_total", "Panics in handlers, each logged.", &m.panics)
	m.counter("internal_errors_total", "Calls that ended with an internal error, each logged.", &m.internals)
	m.gauge("followers", "Consume calls that are open.", func() float64 { return float64(m.following.Load()) })

	acks := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: "ack_seconds",
		Help: "From taking a batch to its ack, by the ack's level.", Buckets: ackBuckets}, []string{"level"})
	m.registry.MustRegister(acks)
	m.ackTime[segments.AckCommitted] = acks.WithLabelValues("committed")
	m.ackTime[segments.AckBuffered] = acks.WithLabelValues("buffered")
	lookups := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: "lookup_seconds",
		Help: "Lookups of offsets by time, one a partition.", Buckets: callBuckets})
	m.registry.MustRegister(lookups)
	m.lookupTime = lookups
	return m
}

// registerTable makes the metrics of calls to the table.
func (m *Meters) registerTable() {
	times := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: "table_call_seconds",
		Help: "Calls to the table.", Buckets: callBuckets}, []string{"op"})
	m.registry.MustRegister(times)
	for i := range m.table {
		op := metadata.Op(i).String()
		m.tableTime[i] = times.WithLabelValues(op)
		m.counterWith("table_errors_total", "Calls to the table that failed; a condition that did not hold, or an absent row, is an answer.",
			prometheus.Labels{"op": op}, &m.tableErrors[i])
		for k := range m.table[i] {
			labels := prometheus.Labels{"op": op, "rows": rowKind(k).String()}
			m.counterWith("table_calls_total", "Calls to the table, by what their rows are for.", labels, &m.table[i][k].calls)
			m.counterWith("table_rows_total", "Rows read or written.", labels, &m.table[i][k].rows)
			m.counterWith("table_bytes_total", "Bytes of rows read or written.", labels, &m.table[i][k].bytes)
			m.unitsWith("table_units_total", "Read or write units that DynamoDB bills for those calls.", labels, &m.table[i][k].units)
		}
	}
}

func (m *Meters) counter(name, help string, v *atomic.Uint64) { m.counterWith(name, help, nil, v) }

func (m *Meters) counterWith(name, help string, labels prometheus.Labels, v *atomic.Uint64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(
		prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help, ConstLabels: labels},
		func() float64 { return float64(v.Load()) }))
}

// unitsWith is counterWith for what is counted in millionths.
func (m *Meters) unitsWith(name, help string, labels prometheus.Labels, v *atomic.Uint64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(
		prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help, ConstLabels: labels},
		func() float64 { return float64(v.Load()) / bill.Part }))
}

// gauge shows what f returns whenever somebody looks, under varve_NAME. A name can be
// given once.
func (m *Meters) gauge(name, help string, f func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, f))
}

// handler serves /metrics.
func (m *Meters) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// flushed counts a segment that was sealed, with its spans and bytes.
func (m *Meters) flushed(spans int, bytes int64) {
	m.flushes.Add(1)
	m.flushedSpans.Add(uint64(spans))
	m.flushedBytes.Add(uint64(bytes))
}

// cycled counts a cycle: what it judged and the journal entries that it wrote.
func (m *Meters) cycled(references, rows int, bytes int64) {
	m.cycles.Add(1)
	m.cycledReferences.Add(uint64(references))
	m.cycledRows.Add(uint64(rows))
	m.cycledBytes.Add(uint64(bytes))
}

// checkpointed counts a partition's checkpoint, with the rows and bytes it wrote.
func (m *Meters) checkpointed(rows int, bytes int64) {
	m.checkpoints.Add(1)
	m.checkpointedRows.Add(uint64(rows))
	m.checkpointedByte.Add(uint64(bytes))
}

// appended counts a batch that was taken, with its records and bytes.
func (m *Meters) appended(records int, bytes int64) {
	m.appends.Add(1)
	m.appendedRecords.Add(uint64(records))
	m.appendedBytes.Add(uint64(bytes))
}

// answeredAgain counts what came again and got its first answer; from is the end of the log when
// the partition was taken.
func (m *Meters) answeredAgain(v *metadata.Verdict, from int64) {
	again, inherited := v.Status == metadata.Repeated, false
	for i := range v.Batches {
		b := &v.Batches[i]
		if b.Outcome == metadata.Duplicate || v.Status == metadata.Repeated && b.Outcome == metadata.Accepted {
			again, inherited = true, inherited || b.Offset < from
		}
	}
	if again {
		m.repeats.Add(1)
	}
	if inherited {
		m.inheritedRepeats.Add(1)
	}
}

// Deeds is what a gateway did beside appending and reading, for the accounts of tests.
type Deeds struct {
	Checkpoints, HandOvers, TakeOvers, Fenced, RecoveredBatches, ClosedOverdue uint64
	// Repeats got their first answers, InheritedRepeats those that an earlier owner had given.
	Repeats, InheritedRepeats uint64
	// Swaps of index entries that were made, and that were refused, as sequenced.
	Swaps, SwapsRefused uint64
	// Trims of log starts.
	Trims uint64
}

// Deeds says what the gateways that count here did so far.
func (m *Meters) Deeds() Deeds {
	return Deeds{Checkpoints: m.checkpoints.Load(), HandOvers: m.handovers.Load(), TakeOvers: m.sealings.Load(), Fenced: m.fences.Load(),
		RecoveredBatches: m.recoveredBatches.Load(), ClosedOverdue: m.closings.Load(), Repeats: m.repeats.Load(), InheritedRepeats: m.inheritedRepeats.Load(),
		Swaps: m.swaps.Load(), SwapsRefused: m.swapsRefused.Load(), Trims: m.trims.Load()}
}

// decided counts what is sequenced beside appends.
func (m *Meters) decided(c *metadata.Change) {
	switch {
	case c.Kind == metadata.ChangeTrim:
		m.trims.Add(1)
	case c.Kind == metadata.ChangeSwap && c.Refused():
		m.swapsRefused.Add(1)
	case c.Kind == metadata.ChangeSwap:
		m.swaps.Add(1)
	}
}

// acked counts an ack and how long its producer waited.
func (m *Meters) acked(level segments.Ack, d time.Duration) {
	m.ackTime[level].Observe(d.Seconds())
}

// lookedUp counts a lookup by time.
func (m *Meters) lookedUp(d time.Duration) { m.lookupTime.Observe(d.Seconds()) }

// recovered counts batches that a predecessor's buffer held.
func (m *Meters) recovered(batches int) { m.recoveredBatches.Add(uint64(batches)) }

// followers counts Consume calls that begin (1) and end (-1).
func (m *Meters) followers(delta int) { m.following.Add(int64(delta)) }

// observeTable returns the table with its calls counted, split by what rows are for.
func (m *Meters) observeTable(t metadata.Table) metadata.Table {
	return metadata.Observe(t, m.tableCall)
}

func (m *Meters) tableCall(o metadata.Observation) {
	c := &m.table[o.Op][kindOf(o)]
	c.calls.Add(1)
	c.rows.Add(uint64(o.Rows))
	c.bytes.Add(uint64(o.Bytes))
	c.units.Add(bill.UnitsOf(o))
	m.tableTime[o.Op].Observe(o.Duration.Seconds())
	if o.Err != nil && !errors.Is(o.Err, metadata.ErrNotFound) && !errors.Is(o.Err, metadata.ErrConflict) {
		m.tableErrors[o.Op].Add(1)
	}
}

// openingRow is the sort key of a journal's first row, which is no commit.
const openingRow = "0000000000000000"

// kindOf tells a row's purpose from its key: see docs/metadata.md.
func kindOf(o metadata.Observation) rowKind {
	switch partition := o.Key.Partition; {
	case strings.HasPrefix(partition, "journal/"):
		// Trimming deletes entries and rewrites the opening row.
		if o.Op == metadata.OpDelete || o.Op == metadata.OpPut && o.Key.Sort == openingRow {
			return rowOther
		}
		return rowCommit
	case strings.HasPrefix(partition, "partition/"):
		return rowCheckpoint
	case partition == "gateways":
		return rowBeat
	}
	return rowOther
}
