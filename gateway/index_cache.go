package gateway

import (
	"context"
	"unsafe"

	"github.com/maypok86/otter/v2"

	"github.com/varvelog/varve/metadata"
)

// indexCache keeps pages and nodes of indexes, which never change, up to a number of bytes: a page of merged segments, whose
// entries have many points, takes many times what one of small entries does.
type indexCache struct {
	index metadata.Index
	rows  *otter.Cache[indexKey, indexRow]
}

// indexKey names a row. Pages are those of level 0, as no node is.
type indexKey struct {
	partition metadata.PartitionID
	level     int
	at        metadata.RowPlace
}

// indexRow is a page or a node.
type indexRow struct {
	entries  []metadata.Entry
	children []metadata.Child
}

// indexRowBytes is about what a row takes beside what it holds.
const indexRowBytes = 256

func newIndexCache(index metadata.Index, bytes int64) *indexCache {
	return &indexCache{index: index, rows: otter.Must(&otter.Options[indexKey, indexRow]{
		MaximumWeight: uint64(bytes),
		Weigher:       func(_ indexKey, r indexRow) uint32 { return r.weight() },
	})}
}

// weight is about how much memory a row takes, in bytes.
func (r indexRow) weight() uint32 {
	n := indexRowBytes + uintptr(cap(r.children))*unsafe.Sizeof(metadata.Child{}) + uintptr(cap(r.entries))*unsafe.Sizeof(metadata.Entry{})
	for i := range r.entries {
		e := &r.entries[i]
		n += uintptr(len(e.Gateway)) + uintptr(cap(e.Points))*unsafe.Sizeof(metadata.Point{})
	}
	return uint32(n)
}

// Page implements [metadata.Index].
func (c *indexCache) Page(ctx context.Context, p metadata.PartitionID, at metadata.RowPlace) ([]metadata.Entry, error) {
	r, err := c.row(indexKey{partition: p, at: at}, func() (r indexRow, err error) {
		r.entries, err = c.index.Page(ctx, p, at)
		return r, err
	})
	return r.entries, err
}

// Node implements [metadata.Index].
func (c *indexCache) Node(ctx context.Context, p metadata.PartitionID, level int, at metadata.RowPlace) ([]metadata.Child, error) {
	r, err := c.row(indexKey{p, level, at}, func() (r indexRow, err error) {
		r.children, err = c.index.Node(ctx, p, level, at)
		return r, err
	})
	return r.children, err
}

// row finds a row, or reads it.
func (c *indexCache) row(key indexKey, read func() (indexRow, error)) (indexRow, error) {
	if r, ok := c.rows.GetIfPresent(key); ok {
		return r, nil
	}
	r, err := read()
	if err == nil {
		c.rows.Set(key, r)
	}
	return r, err
}
