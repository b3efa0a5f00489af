package gateway

import (
	"context"
	"runtime"
	"testing"

	"github.com/varvelog/varve/metadata"
)

// madeIndex has a page or a node of some size at each place, and counts how often it is read.
type madeIndex struct {
	points, reads int
}

// Page implements [metadata.Index].
func (x *madeIndex) Page(_ context.Context, _ metadata.PartitionID, at metadata.RowPlace) ([]metadata.Entry, error) {
	x.reads++
	entries := make([]metadata.Entry, 48)
	for i := range entries {
		entries[i] = metadata.Entry{First: at.First + int64(i), Points: make([]metadata.Point, x.points)}
	}
	return entries, nil
}

// Node implements [metadata.Index].
func (x *madeIndex) Node(_ context.Context, _ metadata.PartitionID, level int, at metadata.RowPlace) ([]metadata.Child, error) {
	x.reads++
	return []metadata.Child{{First: at.First, Entries: int64(level)}}, nil
}

// TestIndexCacheHoldsItsLimit has pages of few and of many points: what is kept takes the bytes that were set, whatever
// a page takes, and what fits is read once.
func TestIndexCacheHoldsItsLimit(t *testing.T) {
	const limit = 8 << 20
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for _, points := range []int{0, 64} {
		x := &madeIndex{points: points}
		before := heap()
		c := newIndexCache(x, limit)
		for n := range int64(4000) {
			if entries, err := c.Page(t.Context(), metadata.PartitionID{}, metadata.RowPlace{First: n}); err != nil || entries[0].First != n {
				t.Fatalf("page %d: %v, %v", n, entries, err)
			}
		}
		c.rows.CleanUp()
		if kept := heap() - before; kept > limit*5/4 || kept < limit/2 {
			t.Errorf("pages of %d points: %d bytes are kept, of %d", points, kept, limit)
		}
		runtime.KeepAlive(c)
	}

	x := &madeIndex{}
	c := newIndexCache(x, limit)
	for range 3 {
		for level := range 3 {
			if children, err := c.Node(t.Context(), metadata.PartitionID{}, level+1, metadata.RowPlace{First: 7}); err != nil || children[0].Entries != int64(level+1) {
				t.Errorf("node of level %d: %v, %v", level+1, children, err)
			}
		}
		if entries, err := c.Page(t.Context(), metadata.PartitionID{}, metadata.RowPlace{First: 7}); err != nil || len(entries) != 48 {
			t.Errorf("page: %v, %v", entries, err)
		}
	}
	if x.reads != 4 {
		t.Errorf("4 rows were read %d times", x.reads)
	}
}
