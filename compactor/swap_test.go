package compactor

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// unreachable is a cluster in which nobody answers swaps of some partitions.
type unreachable struct {
	*pureCluster
	silent func(metadata.PartitionID) bool
}

func (u unreachable) Swap(ctx context.Context, w *metadata.Swap) (metadata.SwapOutcome, error) {
	if u.silent(w.Partition) {
		<-ctx.Done()
		return 0, fmt.Errorf("%w: %w", metadata.ErrUnknown, ctx.Err())
	}
	return u.pureCluster.Swap(ctx, w)
}

// TestSequencerThatIsNotReached: partitions whose sequencer does not answer hold up the merging of others by minutes at most, and their
// own goes on when it does; the floor rises then.
func TestSequencerThatIsNotReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const partitions = 100
		c := newPureCluster(t, partitions+1)
		reached := false
		u := unreachable{c, func(id metadata.PartitionID) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return !reached && id.Number < partitions
		}}
		m, err := New(Config{TargetBytes: 1 << 20, LooksPerSecond: -1}, Dependencies{Store: c.store, Table: c.table, Cluster: u})
		must(t, err)
		t.Cleanup(runs(m))
		all := make([]int, partitions+1)
		for i := range all {
			all[i] = i
		}
		for range 4 {
			next, bytes := c.append(100, all...)
			for i := range all {
				m.Note(partitionID(i), next, bytes)
			}
		}
		began := time.Now()
		if _, err := m.Compact(t.Context(), "", false); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 5*time.Minute {
			t.Errorf("a pass took %s", took)
		}
		c.mu.Lock()
		if floor := c.floor["g1"]; floor > 1 {
			t.Errorf("the floor is %d while swaps are in doubt", floor)
		}
		reached = true
		c.mu.Unlock()
		time.Sleep(4 * time.Hour)
		for i := range all {
			if n := len(c.entries(i)); n != 1 {
				t.Fatalf("partition %d has %d entries", i, n)
			}
		}
		if w, floor := c.lastSwap("g1"); floor <= w.Number {
			t.Errorf("the floor is %d after swap %d", floor, w.Number)
		}
	})
}

// busyStore counts what is read and put.
type busyStore struct {
	segments.Store
	count atomic.Int64
}

func (b *busyStore) Put(ctx context.Context, key string, body segments.Body) error {
	b.count.Add(1)
	return b.Store.Put(ctx, key, body)
}

func (b *busyStore) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	b.count.Add(1)
	return b.Store.Get(ctx, key, offset, length)
}

// TestNothingIsMadeInDoubt: what no swap could put in place, as one of its partition or too many are in doubt, is neither read nor made, pass after pass.
func TestNothingIsMadeInDoubt(t *testing.T) {
	for name, kind := range map[string]struct {
		cleanup    string
		partitions int
	}{"merge": {metadata.CleanupDelete, 1}, "keys": {metadata.CleanupCompact, 1}, "too many": {metadata.CleanupDelete, 2 * mostDoubts}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newPureCluster(t, int32(kind.partitions))
				c.topic.Config.Cleanup = kind.cleanup
				store := &busyStore{Store: c.store}
				var silent atomic.Bool
				silent.Store(true)
				m, err := New(Config{TargetBytes: 64 << 10, LooksPerSecond: -1},
					Dependencies{Store: store, Table: c.table, Cluster: unreachable{c, func(metadata.PartitionID) bool { return silent.Load() }}})
				must(t, err)
				t.Cleanup(runs(m))
				var all []int
				for i := range kind.partitions {
					all = append(all, i)
				}
				pass := func() {
					for range 4 {
						next, bytes := c.append(4<<10, all...)
						for i := range all {
							m.Note(partitionID(i), next, bytes)
						}
					}
					_, err := m.Compact(t.Context(), "", false)
					must(t, err)
				}
				pass()
				before := store.count.Load()
				for range 5 {
					pass()
				}
				if n := store.count.Load() - before; before == 0 || n > 0 {
					t.Errorf("%d calls of the bucket, and %d more that nothing could come of", before, n)
				}
				silent.Store(false)
				time.Sleep(4 * time.Hour)
				pass()
				for i := range all {
					if n := len(c.entries(i)); n > 4 {
						t.Fatalf("partition %d has %d entries", i, n)
					}
				}
			})
		})
	}
}

// TestPiecesOfATail: what is merged here and there in a long tail is put in place by as many swaps as it takes for each to fit its journal.
func TestPiecesOfATail(t *testing.T) {
	entry := func(n int) metadata.Entry {
		e := metadata.Entry{First: int64(n), End: int64(n) + 1, Gateway: "g1", Number: uint64(n + 1), Length: 1 << 20}
		for i := range metadata.MaxPoints {
			e.Points = append(e.Points, metadata.Point{Offset: int64(n), Position: int64(i)})
		}
		return e
	}
	const n = 400
	entries := make([]metadata.Entry, n)
	for i := range entries {
		entries[i] = entry(i)
	}
	section := (&metadata.View{Partition: partitionID(0), Next: n, Tail: entries}).Sections()[0]
	var list []replacement
	for i := 0; i+1 < n; i += 10 {
		e := entry(i)
		e.End = int64(i) + 2
		list = append(list, replacement{from: i, to: i + 2, entry: e})
	}
	l := located{section, entries, list}
	pieces, got := l.pieces(), 0
	for _, piece := range pieces {
		part := partsOver(piece.section, piece.list[0].entry.First, piece.list[len(piece.list)-1].entry.End)
		changed := replacedWithin(entries, piece.list)
		if _, err := metadata.PrepareSwap(t.Context(), nil, part, "g1-m", 1, changed); err != nil {
			t.Errorf("%d replacements: %v", len(piece.list), err)
		}
		got += len(piece.list)
	}
	if got != len(list) || len(pieces) < 2 || len(pieces) > 8 {
		t.Errorf("%d pieces with %d of %d replacements", len(pieces), got, len(list))
	}
	// Compaction by key writes entries anew.
	k := &keyPass{config: KeyConfig{SegmentBytes: 1 << 40}}
	v := &metadata.View{Partition: partitionID(0), Next: n, Tail: entries}
	for at := int64(0); at < n; {
		part, ok := k.section(v, at, n)
		if !ok || part.From != at || part.To <= at {
			t.Fatalf("a part from %d to %d at %d", part.From, part.To, at)
		}
		if _, err := metadata.PrepareSwap(t.Context(), nil, part, "g1-m", 1, entries[part.From:part.To]); err != nil {
			t.Errorf("a part of %d: %v", part.To-part.From, err)
		}
		at = part.To
	}
	if _, err := metadata.PrepareSwap(t.Context(), nil, section, "g1-m", 1, replaced(entries, list)); !errors.Is(err, metadata.ErrInvalid) {
		t.Errorf("all at once: %v", err)
	}
}
