package tabletest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/metadata/tabletest"
)

// Without faults the wrapper is a table like any other.
func TestFaultyWithoutFaults(t *testing.T) {
	tabletest.Run(t, func(*testing.T) metadata.Table { return tabletest.NewFaulty(memtable.New(), nil) })
}

var faultKey = metadata.Key{Partition: "p", Sort: "s"}

func faultRow(sequence uint64) metadata.Row {
	return metadata.Row{Key: faultKey, Stamp: metadata.Stamp{Epoch: 1, Sequence: sequence}, Nonce: metadata.NewNonce()}
}

func always(f tabletest.Fault) tabletest.Plan {
	return func(tabletest.Call) tabletest.Fault { return f }
}

func TestFaultsOfWrites(t *testing.T) {
	for _, test := range []struct {
		kind    tabletest.FaultKind
		want    error
		happens bool
	}{
		{tabletest.None, nil, true},
		{tabletest.Unavailable, metadata.ErrUnavailable, false},
		{tabletest.LostAnswer, metadata.ErrUnknown, true},
		{tabletest.Vanished, metadata.ErrUnknown, false},
		{tabletest.Late, metadata.ErrUnknown, false},
		{tabletest.Slow, nil, true},
		{tabletest.Stale, nil, true},
	} {
		t.Run(test.kind.String(), func(t *testing.T) {
			inner := memtable.New()
			table := tabletest.NewFaulty(inner, always(tabletest.Fault{Kind: test.kind}))
			if err := table.Put(t.Context(), faultRow(1), metadata.IfAbsent()); !errors.Is(err, test.want) || err != nil && !errors.Is(err, tabletest.ErrInjected) {
				t.Errorf("Put: %v", err)
			}
			_, err := inner.Get(t.Context(), faultKey, metadata.Strong)
			if happened := err == nil; happened != test.happens {
				t.Errorf("the put happened: %v, want %v", happened, test.happens)
			}
			table.Release()
			if err := table.Delete(t.Context(), faultKey, metadata.Condition{}); !errors.Is(err, test.want) {
				t.Errorf("Delete: %v", err)
			}
			for _, consistency := range []metadata.Consistency{metadata.Strong, metadata.Eventual} {
				_, err := table.Get(t.Context(), faultKey, consistency)
				if want := test.want != nil; errors.Is(err, metadata.ErrUnavailable) != want {
					t.Errorf("Get: %v, want it to fail: %v", err, want)
				}
			}
		})
	}
}

func TestLateWrites(t *testing.T) {
	inner := memtable.New()
	late := tabletest.Fault{Kind: tabletest.Late}
	table := tabletest.NewFaulty(inner, always(late))
	for i := range 3 {
		late.After = i
		table.SetPlan(always(late))
		r := faultRow(1)
		r.Sort = fmt.Sprint(i)
		if err := table.Put(t.Context(), r, metadata.IfAbsent()); !errors.Is(err, metadata.ErrUnknown) {
			t.Fatal(err)
		}
	}
	table.SetPlan(nil)
	there := func() (out []string) {
		rows, err := inner.Range(t.Context(), metadata.Range{Partition: "p"})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			out = append(out, r.Sort)
		}
		return out
	}
	// The second was to land before the next call, which was the third.
	if diff := cmp.Diff([]string{"1"}, there()); diff != "" {
		t.Fatalf("after the puts:\n%s", diff)
	}
	for range 2 {
		_, _ = table.Get(t.Context(), faultKey, metadata.Strong)
	}
	if diff := cmp.Diff([]string{"1", "2"}, there()); diff != "" {
		t.Fatalf("after two more calls:\n%s", diff)
	}
	if n := table.Release(); n != 1 {
		t.Fatalf("%d writes were still late, want 1", n)
	}
	if diff := cmp.Diff([]string{"0", "1", "2"}, there()); diff != "" {
		t.Fatalf("after Release:\n%s", diff)
	}
}

func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := memtable.New()
		until := make(chan struct{})
		table := tabletest.NewFaulty(inner, always(tabletest.Fault{Kind: tabletest.Slow, Until: until, Delay: time.Second}))
		began := time.Now()
		time.AfterFunc(time.Minute, func() { close(until) })
		if err := table.Put(t.Context(), faultRow(1), metadata.IfAbsent()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d != time.Minute+time.Second {
			t.Fatalf("the put took %v", d)
		}
		table.SetPlan(always(tabletest.Fault{Kind: tabletest.Slow, Delay: time.Hour}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := table.Put(ctx, faultRow(2), metadata.Condition{}); !errors.Is(err, metadata.ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a slow put whose context ends: %v", err)
		}
		if _, err := table.Get(ctx, faultKey, metadata.Strong); !errors.Is(err, metadata.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a slow get whose context ends: %v", err)
		}
		if got, err := inner.Get(t.Context(), faultKey, metadata.Strong); err != nil || got.Stamp.Sequence != 1 {
			t.Fatalf("the row is at %v, error %v", got.Stamp, err)
		}
	})
}

func TestStaleReads(t *testing.T) {
	table := tabletest.NewFaulty(memtable.New(), always(tabletest.Fault{Kind: tabletest.Stale}))
	var lags []uint64
	for i := uint64(1); i <= 20; i++ {
		if err := table.Put(t.Context(), faultRow(i), metadata.Condition{}); err != nil {
			t.Fatal(err)
		}
		strong, err := table.Get(t.Context(), faultKey, metadata.Strong)
		if err != nil || strong.Stamp.Sequence != i {
			t.Fatalf("a strong read gave %v after %d puts, error %v", strong.Stamp, i, err)
		}
		stale, err := table.Get(t.Context(), faultKey, metadata.Eventual)
		if err != nil && !errors.Is(err, metadata.ErrNotFound) {
			t.Fatal(err)
		}
		rows, err := table.Range(t.Context(), metadata.Range{Partition: "p"})
		if err != nil || len(rows) > 0 && rows[0].Stamp != stale.Stamp {
			t.Fatalf("a stale range gave %v, a stale get %v, error %v", rows, stale.Stamp, err)
		}
		lags = append(lags, i-stale.Stamp.Sequence)
	}
	if lags[0] != 1 || lags[7] != 8 || lags[19] != 8 {
		t.Fatalf("stale reads lagged by %v writes", lags)
	}
}

// TestStaleReadsCatchUp checks that writes of other rows make stale reads see a row.
func TestStaleReadsCatchUp(t *testing.T) {
	table := tabletest.NewFaulty(memtable.New(), always(tabletest.Fault{Kind: tabletest.Stale}))
	if err := errors.Join(
		table.Put(t.Context(), faultRow(1), metadata.Condition{}),
		table.Put(t.Context(), faultRow(2), metadata.Condition{}),
	); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		if got, err := table.Get(t.Context(), faultKey, metadata.Eventual); err == nil && got.Stamp.Sequence == 2 {
			t.Fatalf("the second put was seen after %d others", i)
		}
		other := faultRow(1)
		other.Sort = fmt.Sprint("other ", i)
		if err := table.Put(t.Context(), other, metadata.IfAbsent()); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := table.Get(t.Context(), faultKey, metadata.Eventual); err != nil || got.Stamp.Sequence != 2 {
		t.Fatalf("the row is at %v after eight others, error %v", got.Stamp, err)
	}
}

// TestRandomPlan checks that a seed repeats, and that all faults with a rate fire.
func TestRandomPlan(t *testing.T) {
	rates := map[tabletest.FaultKind]float64{
		tabletest.Unavailable: .1, tabletest.LostAnswer: .1, tabletest.Vanished: .1, tabletest.Late: .1, tabletest.Slow: .1, tabletest.Stale: .1,
	}
	run := func(seed uint64) map[tabletest.FaultKind]int {
		fired := make(map[tabletest.FaultKind]int)
		synctest.Test(t, func(t *testing.T) {
			table := tabletest.NewFaulty(memtable.New(), tabletest.RandomPlan(seed, rates))
			for i := range uint64(200) {
				_ = table.Put(t.Context(), faultRow(i+1), metadata.Condition{})
				_, _ = table.Get(t.Context(), faultKey, metadata.Eventual)
			}
			fired = table.Fired()
		})
		return fired
	}
	first := run(1)
	for kind := range rates {
		if first[kind] == 0 {
			t.Errorf("%s never fired in 400 calls", kind)
		}
	}
	if diff := cmp.Diff(first, run(1)); diff != "" {
		t.Errorf("the same seed fired otherwise:\n%s", diff)
	}
	if cmp.Equal(first, run(2)) {
		t.Error("another seed fired the same")
	}
}
