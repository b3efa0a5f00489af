package metadata

import (
	"context"
	"errors"
	"fmt"
	"sort"
)

// Index loads the parts of partitions' indexes that are not in memory: pages and
// tree nodes. They never change once a checkpoint names them, so a cache needs no
// invalidation. All methods may be called at once.
type Index interface {
	// Page returns the entries of a page. ErrIndexMoved when it is gone.
	Page(ctx context.Context, p PartitionID, at RowPlace) ([]Entry, error)
	// Node returns the children of a node of tree/level. ErrIndexMoved when it is gone.
	Node(ctx context.Context, p PartitionID, level int, at RowPlace) ([]Child, error)
}

// TableIndex is the Index straight from the table, one read a call.
type TableIndex struct{ Table Table }

// Page reads a page row. Strongly: an eventual read may still show what a checkpoint
// that was cut short had put under the same key, with other entries.
func (x TableIndex) Page(ctx context.Context, p PartitionID, at RowPlace) ([]Entry, error) {
	row, err := x.read(ctx, pageKey(p, at))
	if err != nil {
		return nil, err
	}
	return decodePage(row.Value)
}

// Node reads a tree row.
func (x TableIndex) Node(ctx context.Context, p PartitionID, level int, at RowPlace) ([]Child, error) {
	row, err := x.read(ctx, treeKey(p, level, at))
	if err != nil {
		return nil, err
	}
	return decodeNode(row.Value)
}

func (x TableIndex) read(ctx context.Context, key Key) (Row, error) {
	row, err := x.Table.Get(ctx, key, Strong)
	if errors.Is(err, ErrNotFound) {
		return Row{}, fmt.Errorf("%w: %s", ErrIndexMoved, key)
	}
	return row, err
}

// piece is a part of the index in offset order: a child of a level, or an entry.
type piece struct {
	level int // of the child; -1: an entry
	child Child
	entry *Entry
	end   int64
}

// empty says that key compaction left no record there: nothing in it is dated.
func (p *piece) empty() bool { return p.child.Bytes == 0 }

func (v *View) pieces() []piece {
	n := len(v.Tail)
	for _, children := range v.Levels {
		n += len(children)
	}
	list := make([]piece, 0, n)
	for level := len(v.Levels) - 1; level >= 0; level-- {
		list = appendChildren(list, level, v.Levels[level])
	}
	list = appendEntries(list, v.Tail)
	closePieces(list, v.Next)
	return list
}

func appendChildren(list []piece, level int, children []Child) []piece {
	for _, c := range children {
		list = append(list, piece{level: level, child: c})
	}
	return list
}

func appendEntries(list []piece, entries []Entry) []piece {
	for i := range entries {
		e := &entries[i]
		list = append(list, piece{level: -1, entry: e, child: child(e)})
	}
	return list
}

// closePieces gives each piece its end: where the next begins.
func closePieces(list []piece, end int64) {
	for i := len(list) - 1; i >= 0; i-- {
		list[i].end = end
		end = list[i].child.First
	}
}

// open returns what a child holds.
func (v *View) open(ctx context.Context, index Index, c piece) ([]piece, error) {
	var list []piece
	if c.level == 0 {
		entries, err := index.Page(ctx, v.Partition, c.child.place())
		if err != nil {
			return nil, err
		}
		list = appendEntries(nil, entries)
	} else {
		children, err := index.Node(ctx, v.Partition, c.level, c.child.place())
		if err != nil {
			return nil, err
		}
		list = appendChildren(nil, c.level-1, children)
	}
	closePieces(list, c.end)
	return list, nil
}

// Entries returns index entries in offset order from the one that holds offset on
// (or the first after it), at least one unless offset is at the end: those of one
// page, or of the tail. ErrIndexMoved: take a new view.
func (v *View) Entries(ctx context.Context, index Index, offset int64) ([]Entry, error) {
	if offset >= v.paged() {
		return v.Tail[findEntry(v.Tail, offset):], nil
	}
	list := v.pieces()
	for {
		i := sort.Search(len(list), func(i int) bool { return list[i].end > offset })
		if i == len(list) {
			return nil, fmt.Errorf("%w: no index entry holds offset %d of %s", ErrCorrupt, offset, v.Partition)
		}
		if list[i].level < 0 {
			return nil, fmt.Errorf("%w: offset %d of %s is in no page", ErrCorrupt, offset, v.Partition)
		}
		if list[i].level == 0 {
			entries, err := index.Page(ctx, v.Partition, list[i].child.place())
			if err != nil {
				return nil, err
			}
			at := findEntry(entries, offset)
			if at == len(entries) { // readers would ask again and again
				return nil, fmt.Errorf("%w: the page of %s at %d ends before offset %d", ErrCorrupt, v.Partition, list[i].child.First, offset)
			}
			return entries[at:], nil
		}
		var err error
		if list, err = v.open(ctx, index, list[i]); err != nil {
			return nil, err
		}
	}
}
