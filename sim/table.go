package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/metadata/tabletest"
)

// table is the table as one process sees it.
type table struct {
	way *way
	// rows answers eventual reads with what was true some writes ago.
	rows  metadata.Table
	paths *paths
}

var _ metadata.Table = (*table)(nil)

// newRows returns an empty table whose eventual reads are stale, all of them.
func newRows() metadata.Table {
	return tabletest.NewFaulty(memtable.New(), func(tabletest.Call) tabletest.Fault {
		return tabletest.Fault{Kind: tabletest.Stale}
	})
}

// consistency makes most eventual reads strong, as they are where nothing goes wrong.
func (t *table) consistency(c metadata.Consistency) metadata.Consistency {
	if c == metadata.Eventual && t.way.weather.draw(TableCalls, staleOdds).fault == stale {
		return metadata.Eventual
	}
	return metadata.Strong
}

func (t *table) read(ctx context.Context, key string, effect func(context.Context) error) error {
	err := t.way.call(ctx, key, func() error { return effect(context.WithoutCancel(ctx)) })
	if f := (*failure)(nil); errors.As(err, &f) {
		return fmt.Errorf("%w: %w", metadata.ErrUnavailable, f)
	}
	return err
}

func (t *table) write(ctx context.Context, key string, effect func(context.Context) error) error {
	err := t.way.call(ctx, key, func() error { return effect(context.WithoutCancel(ctx)) })
	if f := (*failure)(nil); errors.As(err, &f) {
		if f.doubt {
			return fmt.Errorf("%w: %w", metadata.ErrUnknown, f)
		}
		return fmt.Errorf("%w: %w", metadata.ErrUnavailable, f)
	}
	return err
}

// Get implements metadata.Table.
func (t *table) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	c = t.consistency(c)
	found := make(chan metadata.Row, 2) // the call may outlive its caller
	err := t.read(ctx, key.Partition, func(ctx context.Context) error {
		row, err := t.rows.Get(ctx, key, c)
		found <- row
		return err
	})
	if err != nil {
		return metadata.Row{}, err
	}
	return <-found, nil
}

// Range implements metadata.Table.
func (t *table) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	r.Consistency = t.consistency(r.Consistency)
	found := make(chan []metadata.Row, 2)
	err := t.read(ctx, r.Partition, func(ctx context.Context) error {
		rows, err := t.rows.Range(ctx, r)
		found <- rows
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-found, nil
}

// Put implements metadata.Table.
func (t *table) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	row.Value = slices.Clone(row.Value) // the effect may outlive the call
	return t.write(ctx, row.Partition, func(ctx context.Context) error {
		return t.way.ambushes.around(t.way, stepOf(row.Key), func() error {
			replaces := strings.HasPrefix(row.Sort, "page/") && t.paths.exists(row.Key)
			err := t.rows.Put(ctx, row, cond)
			t.paths.put(row, replaces, err)
			return err
		})
	})
}

// Delete implements metadata.Table.
func (t *table) Delete(ctx context.Context, key metadata.Key, cond metadata.Condition) error {
	return t.write(ctx, key.Partition, func(ctx context.Context) error {
		return t.way.ambushes.around(t.way, removalStep, func() error {
			there := t.paths.exists(key)
			err := t.rows.Delete(ctx, key, cond)
			if there && err == nil {
				t.paths.deleted(key)
			}
			return err
		})
	})
}

func (t *table) String() string { return "sim://table" }
