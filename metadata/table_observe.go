package metadata

import (
	"context"
	"time"
)

// Op is one of the calls of a Table.
type Op uint8

// The calls of a Table.
const (
	OpGet Op = iota
	OpPut
	OpDelete
	OpRange
)

func (o Op) String() string {
	return [...]string{"get", "put", "delete", "range"}[o]
}

// Reads tells whether the call changes nothing.
func (o Op) Reads() bool { return o == OpGet || o == OpRange }

// Observation is what one call to a Table was and what came of it.
type Observation struct {
	Op  Op
	Key Key // of a range, its partition and From
	// Bytes counts the keys and values of the rows; of one that is removed its key, or what [WithRemovedSize] told.
	Bytes       int
	Rows        int         // read, or written; of a write that failed none
	Consistency Consistency // of reads
	Duration    time.Duration
	Err         error
}

// Observe returns the table with a hook that is called after each call, by the
// goroutine that made it. Put it beneath [Retry] to see every try.
func Observe(t Table, hook func(Observation)) Table {
	return &observed{table: t, hook: hook}
}

type observed struct {
	table Table
	hook  func(Observation)
}

func (o *observed) String() string { return o.table.String() }

func (o *observed) Get(ctx context.Context, key Key, c Consistency) (Row, error) {
	began := time.Now()
	row, err := o.table.Get(ctx, key, c)
	seen := Observation{Op: OpGet, Key: key, Consistency: c, Duration: time.Since(began), Err: err}
	if err == nil {
		seen.Rows, seen.Bytes = 1, row.Size()
	}
	o.hook(seen)
	return row, err
}

func (o *observed) Put(ctx context.Context, row Row, cond Condition) error {
	began := time.Now()
	err := o.table.Put(ctx, row, cond)
	o.hook(written(OpPut, row.Key, row.Size(), began, err))
	return err
}

func (o *observed) Delete(ctx context.Context, key Key, cond Condition) error {
	began := time.Now()
	err := o.table.Delete(ctx, key, cond)
	o.hook(written(OpDelete, key, max(RemovedSize(ctx), Row{Key: key}.Size()), began, err))
	return err
}

func written(op Op, key Key, size int, began time.Time, err error) Observation {
	seen := Observation{Op: op, Key: key, Duration: time.Since(began), Err: err}
	if err == nil {
		seen.Rows, seen.Bytes = 1, size
	}
	return seen
}

func (o *observed) Range(ctx context.Context, r Range) ([]Row, error) {
	began := time.Now()
	rows, err := o.table.Range(ctx, r)
	seen := Observation{Op: OpRange, Key: Key{Partition: r.Partition, Sort: r.From}, Rows: len(rows),
		Consistency: r.Consistency, Duration: time.Since(began), Err: err}
	for _, row := range rows {
		seen.Bytes += row.Size()
	}
	o.hook(seen)
	return rows, err
}
