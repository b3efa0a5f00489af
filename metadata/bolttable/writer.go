package bolttable

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/varvelog/varve/metadata"
)

// maxGroup bounds what one transaction writes, in bytes of rows.
const maxGroup = 8 << 20

// request is one write on its way to the writer, which owns it once it was sent.
type request struct {
	key     metadata.Key
	stored  []byte
	value   []byte // encoded; nil deletes
	cond    metadata.Condition
	outcome error
	answer  chan error // has room for the one answer
}

// Put implements metadata.Table. Writes that wait for the disk at the same time share one fsync.
func (t *Table) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	if err := errors.Join(row.Validate(), cond.Validate()); err != nil {
		return err
	}
	stored := storedKey(row.Key)
	return t.submit(ctx, &request{key: row.Key, stored: stored, value: encodeRow(stored, row), cond: cond})
}

// Delete implements metadata.Table.
func (t *Table) Delete(ctx context.Context, key metadata.Key, cond metadata.Condition) error {
	if err := errors.Join(key.Validate(), cond.Validate()); err != nil {
		return err
	}
	return t.submit(ctx, &request{key: key, stored: storedKey(key), cond: cond})
}

func (t *Table) submit(ctx context.Context, r *request) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	r.answer = make(chan error, 1)
	select {
	case t.requests <- r:
	case <-t.closing:
		return t.closed()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", metadata.ErrUnavailable, ctx.Err())
	}
	select {
	case err := <-r.answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %s: %w", metadata.ErrUnknown, r.key, ctx.Err())
	}
}

// write is the writer: it commits groups until the table is closed.
func (t *Table) write() {
	defer close(t.ended)
	for {
		select {
		case <-t.closing:
			return
		case first := <-t.requests:
			group := t.gather(first)
			t.commit(group)
			for _, r := range group {
				r.answer <- r.outcome
			}
		}
	}
}

// gather takes everything that waits, up to maxGroup.
func (t *Table) gather(first *request) []*request {
	group := []*request{first}
	for size := len(first.value); size < maxGroup; {
		select {
		case r := <-t.requests:
			group = append(group, r)
			size += len(r.value)
		default:
			return group
		}
	}
	return group
}

// commit judges and applies the group in order, in one transaction, and sets each
// outcome. When the transaction fails no condition was judged against anything that
// is there, so that all of the group fail alike.
func (t *Table) commit(group []*request) {
	if broken := t.broken.Load(); broken != nil {
		setAll(group, *broken)
		return
	}
	var committing bool
	var before int
	err := guard(func() error {
		tx, err := t.db.Begin(true)
		if err != nil {
			return err
		}
		// Of no effect after a commit; after a panic it frees bbolt's locks.
		defer func() { _ = tx.Rollback() }()
		before = tx.ID() - 1
		changed, err := t.apply(tx, group)
		if err != nil || !changed {
			return err
		}
		committing = true
		return tx.Commit()
	})
	if err != nil {
		setAll(group, t.commitError(err, committing, before))
	}
}

// apply judges the group and brings the record of the rows up to date; it tells whether anything changed.
func (t *Table) apply(tx *bolt.Tx, group []*request) (changed bool, err error) {
	rows, err := readTally(tx)
	if err != nil {
		return false, err
	}
	bucket := tx.Bucket(rowsName)
	for _, r := range group {
		changed = r.apply(bucket, &rows) || changed
		if errors.Is(r.outcome, metadata.ErrCorrupt) {
			r.outcome = t.corrupt(r.outcome)
		}
	}
	if !changed {
		return false, nil
	}
	return true, rows.write(tx)
}

// commitError judges a failed transaction and breaks the table where it must. before
// is the number of the last transaction that was committed.
func (t *Table) commitError(err error, committing bool, before int) error {
	if noSpace(err) && t.lastCommit() == before {
		return fmt.Errorf("%w: %s: the disk or the file's limit is full: free some space (%w)", metadata.ErrUnavailable, t.path, err)
	}
	var broken error
	if errors.Is(err, errPanic) || errors.Is(err, metadata.ErrCorrupt) {
		broken = t.corrupt(err)
	} else {
		broken = fmt.Errorf("%w: %s takes no more reads or writes since a commit failed (%v): check the disk, then start again",
			metadata.ErrUnavailable, t.path, err)
	}
	t.broken.Store(&broken)
	if !committing {
		return broken
	}
	return fmt.Errorf("%w: commit to %s: %w", metadata.ErrUnknown, t.path, err)
}

// noSpace tells whether a write (not an fsync, after which nothing is known) was
// refused because there is no room.
func noSpace(err error) bool {
	if errors.Is(err, berrors.ErrMaxSizeReached) {
		return true
	}
	var path *fs.PathError
	if !errors.As(err, &path) || path.Op != "write" {
		return false
	}
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// lastCommit returns the number of the newest transaction that readers see, or -1.
func (t *Table) lastCommit() int {
	id := -1
	_ = guard(func() error {
		return t.db.View(func(tx *bolt.Tx) error {
			id = tx.ID()
			return nil
		})
	})
	return id
}

func setAll(group []*request, err error) {
	for _, r := range group {
		r.outcome = err
	}
}

// apply judges one request, sets its outcome and tells whether it changed anything.
func (r *request) apply(bucket *bolt.Bucket, rows *tally) bool {
	b := bucket.Get(r.stored)
	if r.outcome = r.judge(b); r.outcome != nil || b == nil && r.value == nil {
		return false
	}
	after := *rows
	if b != nil {
		after.remove(b)
	}
	if r.value != nil {
		after.add(r.value)
		r.outcome = bucket.Put(r.stored, r.value)
	} else {
		r.outcome = bucket.Delete(r.stored)
	}
	if r.outcome != nil {
		return false
	}
	*rows = after
	return true
}

// judge returns why the request must not happen where b is stored, or nil. A damaged row is
// in everybody's way: what it was is needed for the record of the rows.
func (r *request) judge(b []byte) (err error) {
	var stamp metadata.Stamp
	if b != nil {
		if stamp, err = checkRow(r.stored, b); err != nil {
			return err
		}
	}
	if !r.cond.Holds(stamp, b != nil) {
		return fmt.Errorf("%w: %s %s", metadata.ErrConflict, r.key, r.cond)
	}
	return nil
}
