// Package tabletest tests every metadata.Table by one suite, and wraps any of them
// in faults.
package tabletest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/varvelog/varve/metadata"
)

// Run tests a backend. open gives an empty table for each of the tests.
func Run(t *testing.T, open func(t *testing.T) metadata.Table) {
	tests := []struct {
		name string
		run  func(s *suite)
	}{
		{"RoundTrip", (*suite).roundTrip},
		{"ConditionsOfPut", (*suite).conditionsOfPut},
		{"ConditionsOfDelete", (*suite).conditionsOfDelete},
		{"ConflictLeavesTheRow", (*suite).conflictLeavesTheRow},
		{"OneWinner", (*suite).oneWinner},
		{"NoLostUpdate", (*suite).noLostUpdate},
		{"ManyWriters", (*suite).manyWriters},
		{"Order", (*suite).order},
		{"Partitions", (*suite).partitions},
		{"Ranges", (*suite).ranges},
		{"Pages", (*suite).pages},
		{"Sizes", (*suite).sizes},
		{"BadArguments", (*suite).badArguments},
		{"Cancelled", (*suite).cancelled},
		{"ValuesAreCopies", (*suite).valuesAreCopies},
		{"String", (*suite).describes},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.run(&suite{T: t, table: open(t)})
		})
	}
}

type suite struct {
	*testing.T
	table metadata.Table
}

func key(partition, sort string) metadata.Key {
	return metadata.Key{Partition: partition, Sort: sort}
}

func stamp(epoch, sequence uint64) metadata.Stamp {
	return metadata.Stamp{Epoch: epoch, Sequence: sequence}
}

func row(k metadata.Key, s metadata.Stamp, value string) metadata.Row {
	return metadata.Row{Key: k, Stamp: s, Nonce: metadata.NewNonce(), Value: []byte(value)}
}

func (s *suite) put(r metadata.Row, c metadata.Condition) {
	s.Helper()
	if err := s.table.Put(s.Context(), r, c); err != nil {
		s.Fatalf("Put %s %s: %v", r.Key, c, err)
	}
}

// wantError fails the test unless err is what is wanted: nil or one of the sentinels.
func (s *suite) wantError(what string, err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("%s: got error %v, want %v", what, err, want)
	}
}

// wantRow fails the test unless the row is there as it was written.
func (s *suite) wantRow(want metadata.Row) {
	s.Helper()
	got, err := s.table.Get(s.Context(), want.Key, metadata.Strong)
	if err != nil {
		s.Fatalf("Get %s: %v", want.Key, err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		s.Fatalf("Get %s (-want +got):\n%s", want.Key, diff)
	}
}

func (s *suite) wantAbsent(k metadata.Key) {
	s.Helper()
	for _, c := range []metadata.Consistency{metadata.Strong, metadata.Eventual} {
		_, err := s.table.Get(s.Context(), k, c)
		s.wantError("Get of an absent row", err, metadata.ErrNotFound)
	}
}

func (s *suite) roundTrip() {
	s.wantAbsent(key("p", "s"))
	for i, r := range []metadata.Row{
		{Key: key("p", "s"), Stamp: stamp(1, 2), Nonce: 3, Value: []byte("value")},
		{Key: key("p", "empty"), Stamp: stamp(0, 1), Nonce: 1},
		{Key: key("p", "max"), Stamp: stamp(math.MaxUint64, math.MaxUint64), Nonce: math.MaxUint64, Value: []byte{0, 255, 0}},
		{Key: key("p", "signed"), Stamp: stamp(1<<63, 1<<63), Nonce: 1 << 63, Value: []byte{0}},
		{Key: key("journal/7 ?#%", "ü/\x00/~"), Stamp: stamp(1, 0), Nonce: 9, Value: bytes.Repeat([]byte{7}, 70_000)},
	} {
		s.put(r, metadata.IfAbsent())
		s.wantRow(r)
		again := row(r.Key, stamp(5, uint64(i)), "again")
		s.put(again, metadata.Condition{})
		s.wantRow(again)
	}
}

// A condition is tried against what is stored: nothing when stored is the zero stamp.
var conditions = []struct {
	stored metadata.Stamp
	cond   metadata.Condition
	holds  bool
}{
	{stamp(0, 0), metadata.Condition{}, true},
	{stamp(0, 0), metadata.IfAbsent(), true},
	{stamp(0, 0), metadata.IfEqual(stamp(0, 0)), false},
	{stamp(0, 0), metadata.IfEqual(stamp(1, 1)), false},
	{stamp(0, 0), metadata.IfBelow(stamp(0, 0)), true},
	{stamp(0, 0), metadata.IfBelow(stamp(1, 1)), true},
	{stamp(2, 5), metadata.Condition{}, true},
	{stamp(2, 5), metadata.IfAbsent(), false},
	{stamp(2, 5), metadata.IfEqual(stamp(2, 5)), true},
	{stamp(2, 5), metadata.IfEqual(stamp(2, 4)), false},
	{stamp(2, 5), metadata.IfEqual(stamp(3, 5)), false},
	{stamp(2, 5), metadata.IfEqual(stamp(0, 0)), false},
	{stamp(2, 5), metadata.IfBelow(stamp(2, 5)), false},
	{stamp(2, 5), metadata.IfBelow(stamp(2, 6)), true},
	{stamp(2, 5), metadata.IfBelow(stamp(2, 4)), false},
	{stamp(2, 5), metadata.IfBelow(stamp(3, 0)), true},
	{stamp(2, 5), metadata.IfBelow(stamp(1, 9)), false},
	{stamp(2, 9), metadata.IfBelow(stamp(2, 10)), true},
	{stamp(2, 10), metadata.IfBelow(stamp(2, 9)), false},
	{stamp(9, 0), metadata.IfBelow(stamp(10, 0)), true},
	{stamp(2, 255), metadata.IfBelow(stamp(2, 256)), true},
	{stamp(1<<63, 0), metadata.IfBelow(stamp(1, 0)), false},
	{stamp(1, 0), metadata.IfBelow(stamp(math.MaxUint64, 0)), true},
	{stamp(1, math.MaxUint64), metadata.IfBelow(stamp(2, 0)), true},
}

// eachCondition runs one step for each condition, on a row of its own that is stored
// when the condition wants one.
func (s *suite) eachCondition(step func(k metadata.Key, stored *metadata.Row, cond metadata.Condition, holds bool)) {
	for i, c := range conditions {
		k := key("conditions", fmt.Sprintf("%02d of %v", i, c.stored))
		if (c.stored == metadata.Stamp{}) {
			step(k, nil, c.cond, c.holds)
			continue
		}
		stored := row(k, c.stored, "stored")
		s.put(stored, metadata.IfAbsent())
		step(k, &stored, c.cond, c.holds)
	}
}

func (s *suite) conditionsOfPut() {
	s.eachCondition(func(k metadata.Key, stored *metadata.Row, cond metadata.Condition, holds bool) {
		r := row(k, stamp(7, 7), "new")
		err := s.table.Put(s.Context(), r, cond)
		switch {
		case holds:
			s.wantError(fmt.Sprintf("Put %s %s", k, cond), err, nil)
			s.wantRow(r)
		default:
			s.wantError(fmt.Sprintf("Put %s %s", k, cond), err, metadata.ErrConflict)
			s.wantStored(k, stored)
		}
	})
}

func (s *suite) conditionsOfDelete() {
	s.eachCondition(func(k metadata.Key, stored *metadata.Row, cond metadata.Condition, holds bool) {
		err := s.table.Delete(s.Context(), k, cond)
		switch {
		case holds:
			s.wantError(fmt.Sprintf("Delete %s %s", k, cond), err, nil)
			s.wantAbsent(k)
		default:
			s.wantError(fmt.Sprintf("Delete %s %s", k, cond), err, metadata.ErrConflict)
			s.wantStored(k, stored)
		}
	})
}

func (s *suite) wantStored(k metadata.Key, stored *metadata.Row) {
	s.Helper()
	if stored == nil {
		s.wantAbsent(k)
		return
	}
	s.wantRow(*stored)
}

func (s *suite) conflictLeavesTheRow() {
	first := row(key("p", "s"), stamp(1, 1), "first")
	s.put(first, metadata.IfAbsent())
	again := first
	again.Value = []byte("other bytes, same nonce")
	s.wantError("Put of the same nonce", s.table.Put(s.Context(), again, metadata.IfAbsent()), metadata.ErrConflict)
	s.wantRow(first)
}

func (s *suite) oneWinner() {
	const racers = 16
	for round := range 4 {
		k := key("race", fmt.Sprint(round))
		var winners atomic.Int64
		var winner atomic.Pointer[metadata.Row]
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() {
				r := row(k, stamp(1, uint64(i)+1), fmt.Sprint("racer ", i))
				switch err := s.table.Put(s.Context(), r, metadata.IfAbsent()); {
				case err == nil:
					winners.Add(1)
					winner.Store(&r)
				case !errors.Is(err, metadata.ErrConflict):
					s.Errorf("Put: got error %v, want nil or %v", err, metadata.ErrConflict)
				}
			})
		}
		wg.Wait()
		if n := winners.Load(); n != 1 {
			s.Fatalf("%d of %d racing puts if absent won, want 1", n, racers)
		}
		s.wantRow(*winner.Load())
	}
}

// noLostUpdate lets writers count up one row by compare-and-set.
func (s *suite) noLostUpdate() {
	const writers, each = 4, 8
	k := key("counter", "c")
	s.put(row(k, stamp(1, 1), ""), metadata.IfAbsent())
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				old, err := s.table.Get(s.Context(), k, metadata.Strong)
				if err != nil {
					s.Errorf("Get: %v", err)
					return
				}
				next := row(k, stamp(1, old.Stamp.Sequence+1), "")
				switch err := s.table.Put(s.Context(), next, metadata.IfEqual(old.Stamp)); {
				case err == nil:
					done++
				case !errors.Is(err, metadata.ErrConflict):
					s.Errorf("Put: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	got, err := s.table.Get(s.Context(), k, metadata.Strong)
	if err != nil || got.Stamp.Sequence != 1+writers*each {
		s.Fatalf("after %d updates the sequence is %d (error %v)", writers*each, got.Stamp.Sequence, err)
	}
}

// manyWriters checks that each writer reads what it wrote, and that all is there.
func (s *suite) manyWriters() {
	const writers, each = 32, 8
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				r := row(key("many", fmt.Sprintf("%02d/%02d", w, i)), stamp(1, 1), fmt.Sprint(w, i))
				if err := s.table.Put(s.Context(), r, metadata.IfAbsent()); err != nil {
					s.Errorf("Put: %v", err)
					return
				}
				got, err := s.table.Get(s.Context(), r.Key, metadata.Strong)
				if err != nil || got.Nonce != r.Nonce {
					s.Errorf("Get %s after its Put: nonce %d, want %d, error %v", r.Key, got.Nonce, r.Nonce, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := len(s.sorts(metadata.Range{Partition: "many"})); n != writers*each {
		s.Fatalf("%d rows are there, want %d", n, writers*each)
	}
}

// sorts returns the sort keys of all pages of a strong range.
func (s *suite) sorts(r metadata.Range) []string {
	s.Helper()
	r.Consistency = metadata.Strong
	var out []string
	for row, err := range metadata.Rows(s.Context(), s.table, r) {
		if err != nil {
			s.Fatalf("Range %+v: %v", r, err)
		}
		if row.Partition != r.Partition {
			s.Fatalf("Range %+v gave a row of %q", r, row.Partition)
		}
		out = append(out, row.Sort)
	}
	return out
}

func (s *suite) wantSorts(r metadata.Range, want []string) {
	s.Helper()
	if diff := cmp.Diff(want, s.sorts(r), cmpopts.EquateEmpty()); diff != "" {
		s.Fatalf("Range %+v (-want +got):\n%s", r, diff)
	}
}

func (s *suite) order() {
	sorts := []string{"\x00", "\x00\x00", " ", "-", "0", "00", "1", "10", "2", "9", ":", "A", "AB", "B", "Z", "_", "a", "a/", "a/1", "a/1\x00", "a/2", "a0", "ab", "b", "z", "~", "é", "€", "😀"}
	// Left out: U+E000 to U+FFFF, which dynalite, comparing UTF-16, takes to be above the last one.
	if !slices.IsSorted(sorts) {
		s.Fatal("the test's own keys are not in byte order")
	}
	for i := range sorts {
		// Any order but the right one.
		s.put(row(key("order", sorts[i*7%len(sorts)]), stamp(1, 1), "v"), metadata.IfAbsent())
	}
	s.wantSorts(metadata.Range{Partition: "order"}, sorts)
	reversed := slices.Clone(sorts)
	slices.Reverse(reversed)
	s.wantSorts(metadata.Range{Partition: "order", Reverse: true}, reversed)
	for i, from := range sorts {
		s.wantSorts(metadata.Range{Partition: "order", From: from}, sorts[i:])
		s.wantSorts(metadata.Range{Partition: "order", To: from}, sorts[:i])
	}
}

// partitions checks that names which begin alike, or flow into the sort key, stay apart.
func (s *suite) partitions() {
	names := []string{"a", "a/", "a/b", "a\x00", "ab", "A", "b", strings.Repeat("a", metadata.MaxPartitionSize)}
	for _, p := range names {
		for _, sort := range []string{"a", "b", "b/c"} {
			s.put(row(key(p, sort), stamp(1, 1), p), metadata.IfAbsent())
		}
	}
	for _, p := range names {
		s.wantSorts(metadata.Range{Partition: p}, []string{"a", "b", "b/c"})
		s.wantSorts(metadata.Range{Partition: p, Reverse: true}, []string{"b/c", "b", "a"})
	}
	s.wantSorts(metadata.Range{Partition: "absent"}, nil)
	s.wantSorts(metadata.Range{Partition: "absent", Reverse: true}, nil)
}

func (s *suite) ranges() {
	all := []string{"a", "b", "c", "d", "e"}
	for _, sort := range all {
		s.put(row(key("ranges", sort), stamp(1, 1), sort), metadata.IfAbsent())
	}
	for _, test := range []struct {
		from, to string
		want     []string
	}{
		{"", "", all},
		{"b", "", all[1:]},
		{"", "d", all[:3]},
		{"b", "d", all[1:3]},
		{"b", "c", all[1:2]},
		{"bb", "dd", all[2:4]},
		{"c", "c", nil},
		{"d", "b", nil},
		{"c\x00", "d", nil},
		{"f", "", nil},
		{"", "a", nil},
		{"0", "z", all},
	} {
		for limit := range 7 {
			want := slices.Clone(test.want)
			r := metadata.Range{Partition: "ranges", From: test.from, To: test.to, Limit: limit}
			s.wantSorts(r, first(want, limit))
			slices.Reverse(want)
			r.Reverse = true
			s.wantSorts(r, first(want, limit))
		}
	}
	// One call answers too, not only all pages together.
	got, err := s.table.Range(s.Context(), metadata.Range{Partition: "ranges", To: "c", Reverse: true, Limit: 1, Consistency: metadata.Strong})
	if err != nil || len(got) != 1 || got[0].Sort != "b" || string(got[0].Value) != "b" || got[0].Nonce == 0 || got[0].Stamp != stamp(1, 1) {
		s.Fatalf("the newest row below c: %+v, error %v", got, err)
	}
}

func first(rows []string, limit int) []string {
	if limit == 0 || limit > len(rows) {
		return rows
	}
	return rows[:limit]
}

// pages checks a range of more than one page of 1 MB, both ways, with gaps and limits.
func (s *suite) pages() {
	value := strings.Repeat("v", 300<<10)
	var want []string
	for i := range 9 {
		sort := fmt.Sprintf("%03d", i)
		s.put(row(key("pages", sort), stamp(1, 1), value), metadata.IfAbsent())
		want = append(want, sort)
	}
	s.wantSorts(metadata.Range{Partition: "pages"}, want)
	s.wantSorts(metadata.Range{Partition: "pages", Limit: 7}, want[:7])
	s.wantSorts(metadata.Range{Partition: "pages", From: "001", To: "008"}, want[1:8])
	slices.Reverse(want)
	s.wantSorts(metadata.Range{Partition: "pages", Reverse: true}, want)
	s.wantSorts(metadata.Range{Partition: "pages", Reverse: true, Limit: 5}, want[:5])
	s.wantSorts(metadata.Range{Partition: "pages", Reverse: true, From: "001", To: "008"}, want[1:8])
}

func (s *suite) sizes() {
	k := key(strings.Repeat("p", metadata.MaxPartitionSize), strings.Repeat("s", metadata.MaxSortSize))
	biggest := row(k, stamp(math.MaxUint64, math.MaxUint64), strings.Repeat("v", metadata.MaxRowSize-metadata.MaxPartitionSize-metadata.MaxSortSize))
	biggest.Nonce = math.MaxUint64
	s.put(biggest, metadata.IfAbsent())
	s.wantRow(biggest)
	s.wantSorts(metadata.Range{Partition: k.Partition, From: k.Sort}, []string{k.Sort})

	large := row(key("p", "large"), stamp(1, 1), strings.Repeat("v", metadata.MaxRowSize-len("plarge")+1))
	s.wantError("Put of a row that is too large", s.table.Put(s.Context(), large, metadata.IfAbsent()), metadata.ErrTooLarge)
	s.wantAbsent(large.Key)
}

func (s *suite) badArguments() {
	good := row(key("p", "s"), stamp(1, 1), "v")
	for name, change := range map[string]func(*metadata.Row){
		"no partition":     func(r *metadata.Row) { r.Partition = "" },
		"no sort":          func(r *metadata.Row) { r.Sort = "" },
		"long partition":   func(r *metadata.Row) { r.Partition = strings.Repeat("p", metadata.MaxPartitionSize+1) },
		"long sort":        func(r *metadata.Row) { r.Sort = strings.Repeat("s", metadata.MaxSortSize+1) },
		"partition's text": func(r *metadata.Row) { r.Partition = "\xff" },
		"sort's text":      func(r *metadata.Row) { r.Sort = "\xc0" },
		"no stamp":         func(r *metadata.Row) { r.Stamp = metadata.Stamp{} },
		"no nonce":         func(r *metadata.Row) { r.Nonce = 0 },
	} {
		bad := good
		change(&bad)
		s.wantPlainError("Put with "+name, s.table.Put(s.Context(), bad, metadata.IfAbsent()))
		if bad.Key == good.Key {
			s.wantAbsent(good.Key)
			continue
		}
		_, err := s.table.Get(s.Context(), bad.Key, metadata.Strong)
		s.wantPlainError("Get with "+name, err)
		s.wantPlainError("Delete with "+name, s.table.Delete(s.Context(), bad.Key, metadata.Condition{}))
	}
	s.wantPlainError("Put with an unknown condition", s.table.Put(s.Context(), good, metadata.Condition{Kind: 99}))
	s.wantPlainError("Delete with an unknown condition", s.table.Delete(s.Context(), good.Key, metadata.Condition{Kind: 99}))
	for _, r := range []metadata.Range{
		{},
		{Partition: "p", From: "\xff"},
		{Partition: "p", To: strings.Repeat("s", metadata.MaxSortSize+2)},
		{Partition: "p", Limit: -1},
	} {
		_, err := s.table.Range(s.Context(), r)
		s.wantPlainError(fmt.Sprintf("Range %+v", r), err)
	}
}

// wantPlainError wants an error on which no caller would try again.
func (s *suite) wantPlainError(what string, err error) {
	s.Helper()
	if err == nil {
		s.Fatalf("%s: no error", what)
	}
	for _, sentinel := range []error{metadata.ErrUnavailable, metadata.ErrUnknown, metadata.ErrConflict, metadata.ErrNotFound} {
		if errors.Is(err, sentinel) {
			s.Fatalf("%s: got %v, want an error of its own kind", what, err)
		}
	}
}

func (s *suite) cancelled() {
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	k := key("p", "cancelled")
	_, err := s.table.Get(ctx, k, metadata.Strong)
	s.wantCancelled("Get", err, metadata.ErrUnavailable)
	_, err = s.table.Range(ctx, metadata.Range{Partition: "p"})
	s.wantCancelled("Range", err, metadata.ErrUnavailable)
	// The context had ended before: these certainly did not happen.
	s.wantCancelled("Put", s.table.Put(ctx, row(k, stamp(1, 1), "v"), metadata.IfAbsent()), metadata.ErrUnavailable)
	s.wantCancelled("Delete", s.table.Delete(ctx, k, metadata.Condition{}), metadata.ErrUnavailable)
	s.wantAbsent(k)
}

func (s *suite) wantCancelled(what string, err, want error) {
	s.Helper()
	s.wantError(what+" with a cancelled context", err, want)
	s.wantError(what+" with a cancelled context", err, context.Canceled)
}

func (s *suite) valuesAreCopies() {
	r := row(key("p", "s"), stamp(1, 1), "value")
	s.put(r, metadata.IfAbsent())
	r.Value[0] = 'X'
	for range 2 {
		got, err := s.table.Get(s.Context(), r.Key, metadata.Strong)
		if err != nil || string(got.Value) != "value" {
			s.Fatalf("Get: %q, error %v, want what was put", got.Value, err)
		}
		got.Value[0] = 'Y'
		rows, err := s.table.Range(s.Context(), metadata.Range{Partition: "p", Consistency: metadata.Strong})
		if err != nil || len(rows) != 1 || string(rows[0].Value) != "value" {
			s.Fatalf("Range: %+v, error %v, want what was put", rows, err)
		}
		rows[0].Value[0] = 'Z'
	}
}

func (s *suite) describes() {
	if text := s.table.String(); !strings.Contains(text, "://") {
		s.Fatalf("the table describes itself as %q, want a URL", text)
	}
}
