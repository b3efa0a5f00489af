package compactor

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varvelog/varve/metadata"
)

// Collection is what a collection of garbage did, or, as a dry run, would do.
type Collection struct {
	ClusterID string
	DryRun    bool
	// Objects are the segments that were listed, with their bytes, Named those that something names.
	Objects, ObjectBytes, Named int64
	// Kept are objects that nothing names and that stay, by why.
	Kept map[Reason]int64
	// Deleted objects, and their bytes.
	Deleted, DeletedBytes int64
	// Rows that were deleted: of indexes, journals and topics that are gone. RowsWaiting are those that wait for the grace.
	Rows, RowsWaiting int64
	// Gateways whose rows were deleted: they are closed, and nothing is left of them.
	Gateways int64
	// Unasked are gateways that did not say what they know: while they are silent, nothing goes of gateways that were
	// closed since.
	Unasked []metadata.GatewayID
	// Unclear are partitions that could not be read: objects with records of theirs stay.
	Unclear []metadata.PartitionID
	// Refusal is the first error of the bucket to a delete; empty: there was none.
	Refusal string
}

func (c *Collection) keep(why Reason, n int64) {
	if n == 0 {
		return
	}
	if c.Kept == nil {
		c.Kept = make(map[Reason]int64)
	}
	c.Kept[why] += n
}

// waits says whether something will go once the grace is over.
func (c *Collection) waits() bool { return c.Kept[KeptForGrace] > 0 || c.RowsWaiting > 0 }

// blocked says whether something could go that did not: another collection is worth a try.
func (c *Collection) blocked() bool {
	return c.waits() || len(c.Unasked) > 0 || c.Kept[KeptUnheard] > 0 || c.Kept[KeptRefused] > 0 || c.Kept[KeptTooMany] > 0
}

// lingers says whether something stays for a reason that may end without becoming garbage once more, so that nothing tells of it.
func (c *Collection) lingers() bool {
	return c.Kept[KeptUnsettled] > 0 || c.Kept[KeptUnknown] > 0 || c.Kept[KeptUnclear] > 0 || c.Kept[KeptNamed] > 0 || c.Kept[KeptUnreadable] > 0 ||
		len(c.Unclear) > 0
}

// collectMeters counts what collections did.
type collectMeters struct {
	collections, failed, objects, bytes, rows, gateways, refused, tooMany atomic.Uint64 // rows with those of gateways
	waiting                                                               atomic.Int64
}

// deletions are what collections deleted.
type deletions struct{ objects, bytes, rows, gateways int64 }

func (m *collectMeters) deleted() deletions {
	gateways := int64(m.gateways.Load())
	return deletions{int64(m.objects.Load()), int64(m.bytes.Load()), int64(m.rows.Load()) - gateways, gateways}
}

// Register makes the collector's metrics known.
func (c *Collector) Register(r prometheus.Registerer) {
	m := &c.meters
	for _, counter := range []struct {
		name, help string
		value      *atomic.Uint64
	}{
		{"collections_total", "Collections of garbage.", &m.collections},
		{"collections_failed_total", "Collections that ended with an error.", &m.failed},
		{"collected_objects_total", "Objects that were deleted as garbage.", &m.objects},
		{"collected_bytes_total", "Bytes of objects that were deleted as garbage.", &m.bytes},
		{"collected_rows_total", "Rows of the table that were deleted as garbage.", &m.rows},
		{"collect_refused_total", "Deletes that the bucket refused or did not answer.", &m.refused},
		{"collect_too_many_total", "Objects that stayed since more would have gone at once than may.", &m.tooMany},
	} {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "varve", Name: counter.name, Help: counter.help},
			func() float64 { return float64(counter.value.Load()) }))
	}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "varve", Name: "collectable_objects",
		Help: "Objects that nothing names, as of the last collection, which wait to be deleted."}, func() float64 { return float64(m.waiting.Load()) }))
}

func (m *collectMeters) note(c *Collection) {
	m.collections.Add(1)
	m.objects.Add(uint64(c.Deleted))
	m.bytes.Add(uint64(c.DeletedBytes))
	m.gateways.Add(uint64(c.Gateways))
	m.rows.Add(uint64(c.Rows + c.Gateways))
	m.refused.Add(uint64(c.Kept[KeptRefused]))
	m.tooMany.Add(uint64(c.Kept[KeptTooMany]))
	m.waiting.Store(c.Kept[KeptForGrace] + c.Kept[KeptRefused] + c.Kept[KeptTooMany])
}
