package bolttable

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/varvelog/varve/metadata"
)

// Get implements metadata.Table.
func (t *Table) Get(ctx context.Context, key metadata.Key, _ metadata.Consistency) (row metadata.Row, err error) {
	if err := key.Validate(); err != nil {
		return metadata.Row{}, err
	}
	stored := storedKey(key)
	err = t.view(ctx, func(bucket *bolt.Bucket) error {
		b := bucket.Get(stored)
		if b == nil {
			return fmt.Errorf("%w: %s", metadata.ErrNotFound, key)
		}
		row, err = decodeRow(key, stored, b)
		return err
	})
	return row, err
}

// Range implements metadata.Table. A page is one short transaction: a long one would keep
// the writer from using freed pages again.
func (t *Table) Range(ctx context.Context, r metadata.Range) (rows []metadata.Row, err error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	err = t.view(ctx, func(bucket *bolt.Bucket) error {
		if r.Empty() {
			return nil
		}
		rows, err = page(bucket.Cursor(), r)
		return err
	})
	return rows, err
}

func page(c *bolt.Cursor, r metadata.Range) ([]metadata.Row, error) {
	prefix := keyPrefix(r.Partition)
	from := append(keyPrefix(r.Partition), r.From...)
	to := append(keyPrefix(r.Partition), r.To...)
	if r.To == "" {
		to = append(to, 0xff) // no UTF-8 begins so
	}
	k, v := c.Seek(from)
	next := c.Next
	if r.Reverse {
		k, v = before(c, to)
		next = c.Prev
	}
	var rows []metadata.Row
	for size := 0; k != nil; k, v = next() {
		if bytes.Compare(k, from) < 0 || bytes.Compare(k, to) >= 0 {
			break
		}
		key := metadata.Key{Partition: r.Partition, Sort: string(k[len(prefix):])}
		row, err := decodeRow(key, k, v)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
		size += row.Size()
		if len(rows) == r.Limit || size >= metadata.MaxPageSize {
			break
		}
	}
	return rows, nil
}

// before returns the last pair whose key is below to.
func before(c *bolt.Cursor, to []byte) (k, v []byte) {
	if k, _ := c.Seek(to); k == nil {
		return c.Last()
	}
	return c.Prev()
}

// view reads in a transaction of its own. A damaged page fails this read alone: others may
// not need it.
func (t *Table) view(ctx context.Context, read func(*bolt.Bucket) error) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	err := guard(func() error {
		return t.db.View(func(tx *bolt.Tx) error { return read(tx.Bucket(rowsName)) })
	})
	switch {
	case errors.Is(err, errPanic), errors.Is(err, metadata.ErrCorrupt):
		return t.corrupt(err)
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return t.closed()
	}
	return err
}
