package metadata_test

import (
	"context"
	"errors"
	"testing"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/metadata/tabletest"
)

// TestReadViewCost counts the reads of a partition's table rows: what a reader pays while a
// sequencer is silent. Nothing is written, and every read is strong.
func TestReadViewCost(t *testing.T) {
	inner := memtable.New()
	gets, ranges := 0, 0
	table := metadata.Observe(inner, func(o metadata.Observation) {
		switch o.Op {
		case metadata.OpGet:
			gets++
		case metadata.OpRange:
			ranges++
		default:
			t.Errorf("a reader writes: %s %s", o.Op, o.Key)
		}
		if o.Consistency != metadata.Strong {
			t.Errorf("an eventual %s of %s", o.Op, o.Key)
		}
	})
	read := func(what string, next int64, wantGets, wantRanges int) {
		t.Helper()
		gets, ranges = 0, 0
		v, err := metadata.ReadView(t.Context(), table, timelinePartition)
		if err != nil || v.Next != next || gets != wantGets || ranges != wantRanges {
			t.Errorf("%s: %+v %v after %d gets and %d ranges, want %d and %d", what, v, err, gets, ranges, wantGets, wantRanges)
		}
	}
	read("nobody has appended, and the topic was not deleted", 0, 2, 0)
	o := arrive(t, inner, "g1")
	read("taken", 0, 4, 1)
	o.refer(t, reference(1, plain()))
	read("appended", 1, 3, 2)
	if _, err := metadata.Seal(t.Context(), inner, "g1", "g2"); err != nil {
		t.Fatal(err)
	}
	read("its owner was found dead", 1, 3, 1)
	o = arrive(t, inner, "g2")
	o.checkpoint(t, inner, true)
	read("released", 1, 1, 0)
}

// TestReadViewErrors: what the table cannot say is said, once it is sure.
func TestReadViewErrors(t *testing.T) {
	table := memtable.New()
	o := arrive(t, table, "g1")
	for n := uint64(1); n <= 3; n++ {
		o.refer(t, reference(n, plain()))
	}
	faulty := tabletest.NewFaulty(table, nil)
	reads := 0
	if _, err := metadata.ReadView(t.Context(), metadata.Observe(table, func(metadata.Observation) { reads++ }), timelinePartition); err != nil {
		t.Fatal(err)
	}
	for n := range reads {
		calls := 0
		faulty.SetPlan(func(tabletest.Call) tabletest.Fault {
			if calls++; calls == n+1 {
				return tabletest.Fault{Kind: tabletest.Unavailable}
			}
			return tabletest.Fault{}
		})
		if v, err := metadata.ReadView(t.Context(), faulty, timelinePartition); !errors.Is(err, metadata.ErrUnavailable) {
			t.Errorf("read %d fails: %+v %v", n+1, v, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := metadata.ReadView(ended, table, timelinePartition); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context ended: %v", err)
	}
	if err := table.Delete(t.Context(), metadata.JournalKey("g1", 2), metadata.Condition{}); err != nil {
		t.Fatal(err)
	}
	if v, err := metadata.ReadView(t.Context(), table, timelinePartition); !errors.Is(err, metadata.ErrHole) {
		t.Errorf("a row of the journal is lost: %+v %v", v, err)
	}
	row := metadata.Row{Key: metadata.JournalKey("g1", 2), Stamp: metadata.Stamp{Epoch: 1, Sequence: 2}, Nonce: 1, Value: []byte("?")}
	if err := table.Put(t.Context(), row, metadata.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	if v, err := metadata.ReadView(t.Context(), table, timelinePartition); !errors.Is(err, metadata.ErrCorrupt) {
		t.Errorf("a row of the journal is damaged: %+v %v", v, err)
	}
	row = metadata.Row{Key: metadata.LeaseKey(timelinePartition), Stamp: metadata.Stamp{Epoch: 9, Sequence: 9}, Nonce: 1, Value: []byte("?")}
	if err := table.Put(t.Context(), row, metadata.IfBelow(row.Stamp)); err != nil {
		t.Fatal(err)
	}
	if v, err := metadata.ReadView(t.Context(), table, timelinePartition); !errors.Is(err, metadata.ErrCorrupt) {
		t.Errorf("the lease row is damaged: %+v %v", v, err)
	}
}

// TestNewer: epochs come before numbers, and a view with the same stamp may replace one.
func TestNewer(t *testing.T) {
	at := func(epoch, sequence uint64) *metadata.View {
		return &metadata.View{Stamp: metadata.Stamp{Epoch: epoch, Sequence: sequence}}
	}
	for _, c := range []struct {
		v, than *metadata.View
		want    bool
	}{
		{at(0, 0), nil, true}, {at(1, 5), at(1, 5), true}, {at(1, 6), at(1, 5), true}, {at(1, 5), at(1, 6), false},
		{at(2, 0), at(1, 6), true}, {at(1, 6), at(2, 0), false},
	} {
		if got := c.v.Newer(c.than); got != c.want {
			t.Errorf("%+v newer than %+v: %v", c.v, c.than, got)
		}
	}
}

// TestStamps: each way to a view gives the stamp of what it shows.
func TestStamps(t *testing.T) {
	table := memtable.New()
	check := func(what string, v *metadata.View, epoch, sequence uint64) {
		t.Helper()
		if want := (metadata.Stamp{Epoch: epoch, Sequence: sequence}); v.Stamp != want || v.Epoch != epoch {
			t.Errorf("%s: %s in epoch %d, want %s", what, v.Stamp, v.Epoch, want)
		}
	}
	lease := func() *metadata.Lease {
		t.Helper()
		l, err := metadata.ReadLease(t.Context(), table, timelinePartition, metadata.Strong)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	check("new", metadata.NewPartition(timelinePartition).View(), 0, 0)
	o := &owner{journal: openJournal(t, table, "g1")}
	for range 3 { // of other partitions
		if _, err := o.journal.Append(t.Context(), value(1)); err != nil {
			t.Fatal(err)
		}
	}
	o.acquire(t, table)
	check("acquired", o.state.View(), 1, 3)
	check("its lease row", lease().View(), 1, 3)
	o.refer(t, reference(1, plain()))
	check("appended", o.state.View(), 1, 4)
	if _, err := o.journal.Append(t.Context(), value(1)); err != nil {
		t.Fatal(err)
	}
	o.checkpoint(t, table, false)
	check("checkpointed", o.state.View(), 1, 5)
	check("its lease row", lease().View(), 1, 5)
	o.refer(t, reference(2, plain()))
	check("appended again", o.state.View(), 1, 6)
	check("the lease row still", lease().View(), 1, 5)
	sealed, err := sealer(table)(t.Context(), "g1")
	if err != nil {
		t.Fatal(err)
	}
	folded, err := lease().Folded(sealed)
	if err != nil {
		t.Fatal(err)
	}
	check("folded", folded, 1, 6)
	o = arrive(t, table, "g2")
	check("taken over", o.state.View(), 2, 0)
	o.checkpoint(t, table, true)
	check("released", lease().View(), 2, 0)
}
