package gateway

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
)

// TestInactivePartitionsCostNothing has gateways start, take appends and idle for an hour, on tables with few and with
// many partitions that nobody uses. Calls to the table must not depend on those.
func TestInactivePartitionsCostNothing(t *testing.T) {
	const active = 40
	type calls struct{ start, appends, again, idle int64 }
	count := func(t *testing.T, partitions int32) (n calls) {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t)
			var all atomic.Int64
			rows := memtable.New()
			c.d.Table = metadata.Observe(rows, func(metadata.Observation) { all.Add(1) })
			topic, err := metadata.NewTopics(rows).Create(t.Context(), "a", partitions, nil, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			leaveRows(t, rows, topic)
			since := func() int64 { return all.Swap(0) }
			m := c.start()
			n.start = since()
			for _, into := range []*int64{&n.appends, &n.again} {
				request := &varvev1.ProduceRequest{Topic: "a"}
				for i := range int32(active) {
					at := i * (partitions / active)
					request.Records = append(request.Records, &varvev1.Record{Partition: &at, Value: []byte("x")})
				}
				if _, err := m.log.Produce(t.Context(), request); err != nil {
					t.Fatal(err)
				}
				c.settle()
				*into = since()
			}
			time.Sleep(time.Hour)
			n.idle = since()
			m.drain()
		})
		return n
	}
	few, many := count(t, active), count(t, 10_000)
	t.Logf("calls to the table with %d partitions: %+v, with 10,000: %+v", active, few, many)
	if few.start == 0 || few.appends < 2*active || few.idle == 0 {
		t.Errorf("%+v: this counts nothing", few)
	}
	// A beat may fall on either side of a moment, and who takes partitions looks at the members: those that begin at
	// the same time share a look, or do not.
	const slack = 2 * active
	for _, c := range []struct {
		name      string
		few, many int64
	}{{"a start", few.start, many.start}, {"first appends", few.appends, many.appends}, {"appends", few.again, many.again}, {"an idle hour", few.idle, many.idle}} {
		if c.many > c.few+slack {
			t.Errorf("%s took %d calls to the table with 10,000 partitions, %d with %d", c.name, c.many, c.few, active)
		}
	}
}

// leaveRows writes the lease row of each partition of a topic, as of one append by a gateway that left.
func leaveRows(t *testing.T, table metadata.Table, topic *metadata.Topic) {
	t.Helper()
	uploader := metadata.NewGatewayID(time.Now())
	journal, err := metadata.OpenJournal(t.Context(), table, uploader)
	if err != nil {
		t.Fatal(err)
	}
	for n := range topic.Partitions {
		p, lease, err := metadata.Acquire(t.Context(), table, metadata.PartitionID{Topic: topic.ID, Number: n}, journal, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, change := p.Judge(&metadata.Reference{Partition: p.ID(), Uploader: uploader, Number: 1, Batches: []metadata.Batch{{
			Size: 1024, Offsets: 1, Records: 1, ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}}})
		if err := p.Apply(change, 1); err != nil {
			t.Fatal(err)
		}
		if err := p.Checkpoint(lease, 1, true).Write(t.Context(), table, lease); err != nil {
			t.Fatal(fmt.Errorf("partition %d: %w", n, err))
		}
	}
}
