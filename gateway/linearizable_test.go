package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
)

// slowReads is a table whose reads take a while, and are counted.
type slowReads struct {
	metadata.Table
	lasts    time.Duration
	counting atomic.Bool
	journals atomic.Int64 // reads of journals
	others   atomic.Int64 // but for those of gateways' rows, which come by themselves
}

func (s *slowReads) note(partition string) {
	if !s.counting.Load() {
		return
	}
	switch {
	case strings.HasPrefix(partition, "journal/"):
		s.journals.Add(1)
	case partition != "gateways":
		s.others.Add(1)
	}
	time.Sleep(s.lasts)
}

func (s *slowReads) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	s.note(key.Partition)
	return s.Table.Get(ctx, key, c)
}

func (s *slowReads) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	s.note(r.Partition)
	return s.Table.Range(ctx, r)
}

// TestLinearizableReadsShare: whoever asks for linearizable answers at the same time shares one
// consistent read of the table, by whichever gateway; the answers say that they are linearizable.
func TestLinearizableReadsShare(t *testing.T) {
	for _, sequenced := range []bool{true, false} {
		t.Run(fmt.Sprintf("sequenced=%v", sequenced), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testLinearizableReadsShare(t, sequenced) })
		})
	}
}

func testLinearizableReadsShare(t *testing.T, sequenced bool) {
	const readers = 50
	c := newTestCluster(t)
	table := &slowReads{Table: c.d.Table, lasts: 10 * time.Millisecond}
	c.d.Table = table
	first, second := c.start(), c.start()
	topic := first.create(t, "a", clusterPartitions, nil)
	c.settle()
	p := foreign(t, topic, first)
	if sequenced {
		if _, err := first.append("a", p, "x"); err != nil {
			t.Fatal(err)
		}
	}
	want := int64(len(first.values(t, "a", p)))
	if _, err := second.log.ListOffsets(t.Context(), &varvev1.ListOffsetsRequest{Topic: "a"}); err != nil { // it knows the topic now
		t.Fatal(err)
	}
	table.counting.Store(true)
	var group sync.WaitGroup
	for i := range readers {
		m := []*member{first, second}[i%2]
		group.Go(func() {
			if i%4 < 2 {
				out, err := m.log.ListOffsets(t.Context(), &varvev1.ListOffsetsRequest{Topic: "a", Partitions: []int32{p}, Linearizable: true})
				if err != nil || !out.GetLinearizable() || out.GetOffsets()[0].GetEndOffset() != want {
					t.Errorf("ListOffsets: %v %v", out, err)
				}
				return
			}
			out, err := m.log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a", Partition: p, Linearizable: true})
			if err != nil || !out.GetLinearizable() || out.GetHighWatermark() != want {
				t.Errorf("Fetch: %v %v", out, err)
			}
		})
	}
	group.Wait()
	table.counting.Store(false)
	journals, others := table.journals.Load(), table.others.Load()
	t.Logf("%d readers: %d reads of journals, %d of other rows", readers, journals, others)
	// One who came first has a read of its own, the next one is for all others.
	if sequenced && (journals == 0 || journals > 3 || others > 0) || !sequenced && (others == 0 || others+journals > 8) {
		t.Errorf("%d readers cost %d reads of journals and %d of other rows", readers, journals, others)
	}
	for _, m := range []*member{first, second} {
		out, err := m.log.ListOffsets(t.Context(), &varvev1.ListOffsetsRequest{Topic: "a", Partitions: []int32{p}})
		if err != nil || out.GetLinearizable() {
			t.Errorf("another answer says that it is linearizable: %v %v", out, err)
		}
		fetched, err := m.log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a", Partition: p})
		if err != nil || fetched.GetLinearizable() {
			t.Errorf("another answer says that it is linearizable: %v %v", fetched, err)
		}
	}
	first.drain()
	second.drain()
}

// TestLinearizableReadOfAFencedOwner asks a gateway that was paused for longer than its lease,
// before it has found out: it must not answer with what it still believes.
func TestLinearizableReadOfAFencedOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second := c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		p := foreign(t, topic, first)
		if _, err := first.append("a", p, "before"); err != nil {
			t.Fatal(err)
		}
		gate := make(chan struct{})
		first.table.set(func(metadata.Op, metadata.Key) error {
			<-gate
			return nil
		})
		c.network.disconnect(first.address, true)
		time.Sleep(3 * c.config.LeaseTime)
		at, err := second.append("a", p, "after")
		if err != nil {
			t.Fatal(err)
		}
		plain, err := first.log.ListOffsets(t.Context(), &varvev1.ListOffsetsRequest{Topic: "a", Partitions: []int32{p}})
		if err != nil || plain.GetOffsets()[0].GetEndOffset() > at {
			t.Errorf("it knows of it already, this proves nothing: %v %v", plain, err)
		}
		type answer struct {
			end int64
			err error
		}
		answers := make(chan answer, 2)
		ask := func() {
			out, err := first.log.ListOffsets(t.Context(), &varvev1.ListOffsetsRequest{Topic: "a", Partitions: []int32{p}, Linearizable: true})
			if err != nil {
				answers <- answer{0, err}
				return
			}
			answers <- answer{out.GetOffsets()[0].GetEndOffset(), nil}
		}
		go ask() // while it is paused
		synctest.Wait()
		first.table.clear()
		close(gate)
		c.network.disconnect(first.address, false)
		go ask() // and right after
		for range 2 {
			if a := <-answers; a.err != nil || a.end != at+1 {
				t.Errorf("the log ends at %d, it is told %d, %v", at+1, a.end, a.err)
			}
		}
		first.drain()
		second.drain()
	})
}
