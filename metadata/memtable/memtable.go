// Package memtable keeps the metadata table in memory: for tests, simulations and
// throw-away servers. It opens no file and no socket and starts no goroutine, and its
// mutex is never held across anything that waits, so that it works in a
// testing/synctest bubble.
package memtable

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/varvelog/varve/metadata"
)

// Table is a metadata.Table in memory. Strong and Eventual reads are the same.
type Table struct {
	mu sync.RWMutex
	// Each partition is ordered by sort key. Stored rows are never changed, only
	// replaced, so that values are copied outside the lock.
	partitions map[string][]*metadata.Row
}

var _ metadata.Table = (*Table)(nil)

// New returns an empty table.
func New() *Table {
	return &Table{partitions: make(map[string][]*metadata.Row)}
}

func (t *Table) String() string { return "mem://" }

// Get implements metadata.Table.
func (t *Table) Get(ctx context.Context, key metadata.Key, _ metadata.Consistency) (metadata.Row, error) {
	if err := start(ctx, key.Validate()); err != nil {
		return metadata.Row{}, err
	}
	t.mu.RLock()
	rows := t.partitions[key.Partition]
	i, found := search(rows, key.Sort)
	var row *metadata.Row
	if found {
		row = rows[i]
	}
	t.mu.RUnlock()
	if !found {
		return metadata.Row{}, fmt.Errorf("%w: %s", metadata.ErrNotFound, key)
	}
	return clone(*row), nil
}

// Put implements metadata.Table.
func (t *Table) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	if err := start(ctx, row.Validate(), cond.Validate()); err != nil {
		return err
	}
	row = clone(row)
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := t.partitions[row.Partition]
	i, found := search(rows, row.Sort)
	if err := check(rows, i, found, row.Key, cond); err != nil {
		return err
	}
	if found {
		rows[i] = &row
		return nil
	}
	t.partitions[row.Partition] = slices.Insert(rows, i, &row)
	return nil
}

// Delete implements metadata.Table.
func (t *Table) Delete(ctx context.Context, key metadata.Key, cond metadata.Condition) error {
	if err := start(ctx, key.Validate(), cond.Validate()); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := t.partitions[key.Partition]
	i, found := search(rows, key.Sort)
	if err := check(rows, i, found, key, cond); err != nil {
		return err
	}
	if !found {
		return nil
	}
	if rows = slices.Delete(rows, i, i+1); len(rows) == 0 {
		delete(t.partitions, key.Partition)
		return nil
	}
	t.partitions[key.Partition] = rows
	return nil
}

// Range implements metadata.Table. Its pages end at metadata.MaxPageSize as those of
// other tables do, so that whoever forgets the next page is found out in memory.
func (t *Table) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	if err := start(ctx, r.Validate()); err != nil {
		return nil, err
	}
	page := t.page(r)
	out := make([]metadata.Row, len(page))
	for i, row := range page {
		out[i] = clone(*row)
	}
	return out, nil
}

// page returns the stored rows themselves, to be copied outside the lock.
func (t *Table) page(r metadata.Range) []*metadata.Row {
	t.mu.RLock()
	defer t.mu.RUnlock()
	rows := t.partitions[r.Partition]
	if r.Empty() {
		return nil
	}
	if r.To != "" {
		end, _ := search(rows, r.To)
		rows = rows[:end]
	}
	first, _ := search(rows, r.From)
	rows = rows[first:]
	var page []*metadata.Row
	for size := 0; len(rows) > 0 && size < metadata.MaxPageSize && (r.Limit == 0 || len(page) < r.Limit); {
		next := rows[0]
		if r.Reverse {
			next, rows = rows[len(rows)-1], rows[:len(rows)-1]
		} else {
			rows = rows[1:]
		}
		page = append(page, next)
		size += next.Size()
	}
	return page
}

// start refuses bad arguments and a context that has ended: nothing happened yet.
func start(ctx context.Context, faults ...error) error {
	for _, err := range faults {
		if err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", metadata.ErrUnavailable, err)
	}
	return nil
}

func check(rows []*metadata.Row, i int, found bool, key metadata.Key, cond metadata.Condition) error {
	var stored metadata.Stamp
	if found {
		stored = rows[i].Stamp
	}
	if !cond.Holds(stored, found) {
		return fmt.Errorf("%w: %s %s", metadata.ErrConflict, key, cond)
	}
	return nil
}

func search(rows []*metadata.Row, sort string) (int, bool) {
	return slices.BinarySearchFunc(rows, sort, func(r *metadata.Row, s string) int {
		return strings.Compare(r.Sort, s)
	})
}

func clone(r metadata.Row) metadata.Row {
	r.Value = bytes.Clone(r.Value)
	return r
}
