package metadata_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v5"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/metadata/tabletest"
)

// tries gives up after that many pauses, which take no time.
func tries(n int) metadata.NewBackOff {
	return func() backoff.BackOff { return &countdown{left: n} }
}

type countdown struct{ left int }

func (c *countdown) Reset() {}

func (c *countdown) NextBackOff() time.Duration {
	if c.left--; c.left < 0 {
		return backoff.Stop
	}
	return 0
}

// recorder knows which rows took effect at some time, by nonce, and how often.
type recorder struct {
	metadata.Table
	mu      sync.Mutex
	effects map[uint64]int
	deletes int
}

func newRecorder() *recorder {
	return &recorder{Table: memtable.New(), effects: make(map[uint64]int)}
}

func (r *recorder) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	err := r.Table.Put(ctx, row, cond)
	if err == nil {
		r.mu.Lock()
		r.effects[row.Nonce]++
		r.mu.Unlock()
	}
	return err
}

func (r *recorder) Delete(ctx context.Context, key metadata.Key, cond metadata.Condition) error {
	err := r.Table.Delete(ctx, key, cond)
	if err == nil {
		r.mu.Lock()
		r.deletes++
		r.mu.Unlock()
	}
	return err
}

var rowKey = metadata.Key{Partition: "p", Sort: "s"}

func at(sequence uint64) metadata.Stamp { return metadata.Stamp{Epoch: 1, Sequence: sequence} }

func newRow(sequence uint64) metadata.Row {
	return metadata.Row{Key: rowKey, Stamp: at(sequence), Nonce: metadata.NewNonce(), Value: []byte("value")}
}

// drawFaults draws a fault for each call, and sometimes another writer who comes just before it.
func drawFaults(t *rapid.T, table metadata.Table, others int) tabletest.Plan {
	return func(call tabletest.Call) tabletest.Fault {
		if others > 0 && rapid.IntRange(0, 3).Draw(t, "another writer") == 0 {
			others--
			interfere(t, table)
		}
		kind := rapid.SampledFrom([]tabletest.FaultKind{
			tabletest.None, tabletest.None, tabletest.Unavailable, tabletest.LostAnswer, tabletest.Vanished, tabletest.Late,
		}).Draw(t, "fault")
		return tabletest.Fault{Kind: kind, After: rapid.IntRange(0, 3).Draw(t, "after")}
	}
}

// interfere replaces the row under a stamp above its own, or puts one at the stamp
// for which others race.
func interfere(t *rapid.T, table metadata.Table) {
	next := newRow(rapid.Uint64Range(1, 6).Draw(t, "their stamp"))
	err := table.Put(context.Background(), next, metadata.IfBelow(next.Stamp))
	if err != nil && !errors.Is(err, metadata.ErrConflict) {
		t.Fatal(err)
	}
}

func TestPutSettled(t *testing.T) {
	outcomes := make(map[string]int)
	rapid.Check(t, func(t *rapid.T) {
		inner := newRecorder()
		if rapid.Bool().Draw(t, "stored") {
			if err := inner.Put(t.Context(), newRow(1), metadata.IfAbsent()); err != nil {
				t.Fatal(err)
			}
		}
		table := tabletest.NewFaulty(inner, drawFaults(t, inner, rapid.IntRange(0, 2).Draw(t, "others")))
		row := newRow(rapid.Uint64Range(2, 4).Draw(t, "stamp"))
		cond := rapid.SampledFrom([]metadata.Condition{
			metadata.IfAbsent(), metadata.IfEqual(at(1)), metadata.IfBelow(row.Stamp),
		}).Draw(t, "condition")

		err := metadata.PutSettled(t.Context(), table, row, cond, tries(rapid.IntRange(0, 8).Draw(t, "tries")))
		effects := inner.effects[row.Nonce]
		table.Release()
		switch {
		case err == nil:
			outcomes["nil"]++
			if effects != 1 || inner.effects[row.Nonce] != 1 {
				t.Fatalf("nil, but the row took effect %d times, %d in the end", effects, inner.effects[row.Nonce])
			}
		case errors.Is(err, metadata.ErrUnknown):
			outcomes["unknown"]++
			if errors.Is(err, metadata.ErrConflict) || errors.Is(err, metadata.ErrUnavailable) {
				t.Fatalf("the error says more than is known: %v", err)
			}
		case errors.Is(err, metadata.ErrConflict):
			outcomes["conflict"]++
			fallthrough
		case errors.Is(err, metadata.ErrUnavailable):
			outcomes["no"]++
			if n := inner.effects[row.Nonce]; n != 0 {
				t.Fatalf("%v, but the row took effect", err)
			}
		default:
			t.Fatalf("unexpected error %v", err)
		}
	})
	for _, outcome := range []string{"nil", "unknown", "conflict"} {
		if outcomes[outcome] == 0 {
			t.Errorf("no run ended with %q: %v", outcome, outcomes)
		}
	}
}

// TestPutSettledEnds checks that settling ends with an answer once faults do, where
// nobody overtakes the row.
func TestPutSettledEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inner := newRecorder()
		random := drawFaults(t, inner, 0)
		table := tabletest.NewFaulty(inner, func(call tabletest.Call) tabletest.Fault {
			if call.Number > 6 {
				return tabletest.Fault{}
			}
			return random(call)
		})
		rival := newRow(2)
		there := rapid.Bool().Draw(t, "rival")
		if there {
			if err := inner.Put(t.Context(), rival, metadata.IfAbsent()); err != nil {
				t.Fatal(err)
			}
		}
		row := newRow(2)
		err := metadata.PutSettled(t.Context(), table, row, metadata.IfAbsent(), tries(20))
		table.Release()
		if there && !errors.Is(err, metadata.ErrConflict) || !there && err != nil {
			t.Fatalf("with a rival %v: %v", there, err)
		}
		want := map[bool]uint64{true: rival.Nonce, false: row.Nonce}[there]
		if got, err := inner.Get(t.Context(), rowKey, metadata.Strong); err != nil || got.Nonce != want {
			t.Fatalf("the row there has nonce %d, want %d, error %v", got.Nonce, want, err)
		}
	})
}

func TestDeleteSettled(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inner := newRecorder()
		stored := newRow(3)
		if err := inner.Put(t.Context(), stored, metadata.IfAbsent()); err != nil {
			t.Fatal(err)
		}
		table := tabletest.NewFaulty(inner, drawFaults(t, inner, 0))
		cond := rapid.SampledFrom([]metadata.Condition{
			{}, metadata.IfEqual(at(3)), metadata.IfBelow(at(4)), metadata.IfEqual(at(2)), metadata.IfBelow(at(3)),
		}).Draw(t, "condition")
		holds := cond.Holds(stored.Stamp, true)

		err := metadata.DeleteSettled(t.Context(), table, rowKey, cond, tries(rapid.IntRange(0, 8).Draw(t, "tries")))
		_, getErr := inner.Get(t.Context(), rowKey, metadata.Strong)
		gone := errors.Is(getErr, metadata.ErrNotFound)
		table.Release()
		switch {
		case err == nil && (!gone || !holds), errors.Is(err, metadata.ErrConflict) && (gone || holds):
			t.Fatalf("error %v, the row is gone: %v, the condition held: %v", err, gone, holds)
		case errors.Is(err, metadata.ErrUnavailable) && inner.deletes > 0:
			t.Fatalf("%v, but the row was removed", err)
		case err != nil && !errors.Is(err, metadata.ErrConflict) && !errors.Is(err, metadata.ErrUnavailable) && !errors.Is(err, metadata.ErrUnknown):
			t.Fatalf("unexpected error %v", err)
		}
	})
}

// script plays one fault a call, then none.
func script(faults ...tabletest.FaultKind) tabletest.Plan {
	return func(call tabletest.Call) tabletest.Fault {
		if call.Number > len(faults) {
			return tabletest.Fault{}
		}
		return tabletest.Fault{Kind: faults[call.Number-1]}
	}
}

func TestSettledByScript(t *testing.T) {
	const (
		ok, down, lost, vanished, late = tabletest.None, tabletest.Unavailable, tabletest.LostAnswer, tabletest.Vanished, tabletest.Late
	)
	for _, test := range []struct {
		name   string
		faults []tabletest.FaultKind
		rival  uint64 // stamp of a row that is there already
		want   error
		calls  int
	}{
		{"at once", nil, 0, nil, 1},
		{"lost answer", []tabletest.FaultKind{lost}, 0, nil, 2},
		{"vanished", []tabletest.FaultKind{vanished}, 0, nil, 3},
		{"late", []tabletest.FaultKind{late}, 0, nil, 3},
		{"down", []tabletest.FaultKind{down, down}, 0, nil, 3},
		{"down in reading back", []tabletest.FaultKind{lost, down, down}, 0, nil, 4},
		{"lost twice", []tabletest.FaultKind{vanished, ok, lost}, 0, nil, 4},
		{"rival", nil, 2, metadata.ErrConflict, 2},
		{"newer rival, never in doubt", nil, 9, metadata.ErrConflict, 2},
		{"newer rival, reading back fails once", []tabletest.FaultKind{ok, down}, 9, metadata.ErrConflict, 3},
		{"rival, answer lost", []tabletest.FaultKind{lost}, 2, metadata.ErrConflict, 2},
		{"newer rival, in doubt", []tabletest.FaultKind{lost}, 9, metadata.ErrUnknown, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			inner := memtable.New()
			if test.rival > 0 {
				if err := inner.Put(t.Context(), newRow(test.rival), metadata.IfAbsent()); err != nil {
					t.Fatal(err)
				}
			}
			table := tabletest.NewFaulty(inner, script(test.faults...))
			err := metadata.PutSettled(t.Context(), table, newRow(2), metadata.IfAbsent(), tries(10))
			if !errors.Is(err, test.want) {
				t.Errorf("got error %v, want %v", err, test.want)
			}
			if n := table.Calls(); n != test.calls {
				t.Errorf("%d calls, want %d", n, test.calls)
			}
		})
	}
}

// TestPutSettledOvertaken has a late try land, and a newer row replace it, before the
// second try: its conflict must not be taken for a "no".
func TestPutSettledOvertaken(t *testing.T) {
	inner := newRecorder()
	row := newRow(2)
	table := tabletest.NewFaulty(inner, func(call tabletest.Call) tabletest.Fault {
		switch call.Number {
		case 1: // the put
			return tabletest.Fault{Kind: tabletest.Late, After: 2}
		case 3: // the second; the first has just landed
			if err := inner.Put(t.Context(), newRow(3), metadata.IfEqual(row.Stamp)); err != nil {
				t.Error(err)
			}
		}
		return tabletest.Fault{}
	})
	err := metadata.PutSettled(t.Context(), table, row, metadata.IfAbsent(), tries(5))
	if !errors.Is(err, metadata.ErrUnknown) || inner.effects[row.Nonce] != 1 {
		t.Fatalf("error %v, the row took effect %d times", err, inner.effects[row.Nonce])
	}
}

// TestPutSettledStaysInDoubt has a late try followed by ones that certainly did nothing.
func TestPutSettledStaysInDoubt(t *testing.T) {
	inner := newRecorder()
	const late, ok, down = tabletest.Late, tabletest.None, tabletest.Unavailable
	table := tabletest.NewFaulty(inner, script(late, ok, down, down, down))
	row := newRow(2)
	err := metadata.PutSettled(t.Context(), table, row, metadata.IfAbsent(), tries(3))
	if !errors.Is(err, metadata.ErrUnknown) || errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("got error %v, want %v", err, metadata.ErrUnknown)
	}
	if table.Release(); inner.effects[row.Nonce] != 1 {
		t.Fatal("the late put did not land: the test tests nothing")
	}
}

// repeater is a proxy that sends each write twice and passes on the second answer.
type repeater struct{ metadata.Table }

func (r repeater) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	_ = r.Table.Put(ctx, row, cond)
	return r.Table.Put(ctx, row, cond)
}

func TestPutSettledKnowsItsOwnConflict(t *testing.T) {
	table := repeater{memtable.New()}
	if err := metadata.PutSettled(t.Context(), table, newRow(2), metadata.IfAbsent(), tries(0)); err != nil {
		t.Fatal(err)
	}
}

// deny refuses everything after the first call.
func deny(table metadata.Table) metadata.Table { return &denied{Table: table} }

type denied struct {
	metadata.Table
	calls int
}

func (d *denied) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	if d.calls++; d.calls > 1 {
		return metadata.ErrDenied
	}
	return d.Table.Put(ctx, row, cond)
}

func (d *denied) Get(context.Context, metadata.Key, metadata.Consistency) (metadata.Row, error) {
	return metadata.Row{}, metadata.ErrDenied
}

func TestSettledOtherErrors(t *testing.T) {
	refused := deny(memtable.New())
	_ = refused.Put(t.Context(), newRow(1), metadata.IfAbsent())
	if err := metadata.PutSettled(t.Context(), refused, newRow(2), metadata.IfAbsent(), nil); !errors.Is(err, metadata.ErrDenied) {
		t.Errorf("denied at once: %v", err)
	}
	// Denied once a try is in doubt: the doubt is what counts.
	table := deny(tabletest.NewFaulty(memtable.New(), script(tabletest.LostAnswer)))
	err := metadata.PutSettled(t.Context(), table, newRow(2), metadata.IfAbsent(), nil)
	if !errors.Is(err, metadata.ErrUnknown) || errors.Is(err, metadata.ErrDenied) || !strings.Contains(err.Error(), "denied") {
		t.Errorf("denied in doubt: %v", err)
	}
	large := newRow(2)
	large.Value = make([]byte, metadata.MaxRowSize)
	if err := metadata.PutSettled(t.Context(), memtable.New(), large, metadata.IfAbsent(), nil); !errors.Is(err, metadata.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

// TestSettledUntilTheContextEnds runs the real pauses, in virtual time.
func TestSettledUntilTheContextEnds(t *testing.T) {
	for kind, want := range map[tabletest.FaultKind]error{
		tabletest.Unavailable: metadata.ErrUnavailable,
		tabletest.Vanished:    metadata.ErrUnknown,
	} {
		synctest.Test(t, func(t *testing.T) {
			table := tabletest.NewFaulty(memtable.New(), func(tabletest.Call) tabletest.Fault { return tabletest.Fault{Kind: kind} })
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			began := time.Now()
			for op, err := range map[string]error{"put": metadata.PutSettled(ctx, table, newRow(1), metadata.IfAbsent(), nil)} {
				if !errors.Is(err, want) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s with %s: %v", op, kind, err)
				}
			}
			if d := time.Since(began); d != time.Minute {
				t.Errorf("%s: gave up after %v", kind, d)
			}
			// A second at most between tries, with jitter half as much again.
			if n := table.Calls(); n < 40 || n > 140 {
				t.Errorf("%s: %d calls in a minute", kind, n)
			}
			err := metadata.DeleteSettled(ctx, table, rowKey, metadata.Condition{}, nil)
			if !errors.Is(err, want) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("delete with %s: %v", kind, err)
			}
		})
	}
}

func TestRetry(t *testing.T) {
	inner := memtable.New()
	if err := inner.Put(t.Context(), newRow(1), metadata.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	down := tabletest.Unavailable
	for name, read := range map[string]func(metadata.Table) error{
		"get": func(table metadata.Table) error {
			_, err := table.Get(t.Context(), rowKey, metadata.Strong)
			return err
		},
		"range": func(table metadata.Table) error {
			rows, err := table.Range(t.Context(), metadata.Range{Partition: "p"})
			if err == nil && len(rows) != 1 {
				return fmt.Errorf("%d rows", len(rows))
			}
			return err
		},
	} {
		if err := read(metadata.Retry(tabletest.NewFaulty(inner, script(down, down, down)), tries(3))); err != nil {
			t.Errorf("%s with three faults and four tries: %v", name, err)
		}
		if err := read(metadata.Retry(tabletest.NewFaulty(inner, script(down, down, down)), tries(2))); !errors.Is(err, metadata.ErrUnavailable) {
			t.Errorf("%s with three faults and three tries: %v", name, err)
		}
	}
	writes := tabletest.NewFaulty(inner, script(down, down))
	table := metadata.Retry(writes, tries(3))
	if err := table.Put(t.Context(), newRow(2), metadata.Condition{}); !errors.Is(err, metadata.ErrUnavailable) {
		t.Errorf("a write: %v", err)
	}
	absent := metadata.Key{Partition: "p", Sort: "absent"}
	before := writes.Calls()
	writes.SetPlan(nil)
	if _, err := table.Get(t.Context(), absent, metadata.Strong); !errors.Is(err, metadata.ErrNotFound) || writes.Calls() != before+1 {
		t.Errorf("an absent row: %v after %d calls", err, writes.Calls()-before)
	}
}

func TestObserve(t *testing.T) {
	var seen []string
	table := metadata.Observe(memtable.New(), func(o metadata.Observation) {
		seen = append(seen, fmt.Sprintf("%s %s %d rows %d bytes strong=%v conflict=%v took=%v",
			o.Op, o.Key, o.Rows, o.Bytes, o.Consistency, errors.Is(o.Err, metadata.ErrConflict), o.Duration > 0))
	})
	_ = table.Put(t.Context(), newRow(1), metadata.IfAbsent())
	_ = table.Put(t.Context(), newRow(1), metadata.IfAbsent())
	_, _ = table.Get(t.Context(), rowKey, metadata.Strong)
	_, _ = table.Range(t.Context(), metadata.Range{Partition: "p", From: "a"})
	_ = table.Delete(t.Context(), rowKey, metadata.Condition{})
	_, _ = table.Get(t.Context(), rowKey, metadata.Eventual)
	want := []string{
		"put p s 1 rows 7 bytes strong=false conflict=false took=true",
		"put p s 0 rows 0 bytes strong=false conflict=true took=true",
		"get p s 1 rows 7 bytes strong=true conflict=false took=true",
		"range p a 1 rows 7 bytes strong=false conflict=false took=true",
		"delete p s 1 rows 2 bytes strong=false conflict=false took=true",
		"get p s 0 rows 0 bytes strong=false conflict=false took=true",
	}
	for i := range want {
		if i >= len(seen) || seen[i] != want[i] {
			t.Errorf("observation %d:\n got %q\nwant %q", i, seen, want[i])
		}
	}
}
