package metadata

import (
	"cmp"
	"context"
	"errors"
	"fmt"
)

// Errors that every [Table] translates its own failures into, wrapped with detail.
var (
	// ErrNotFound says that the row does not exist.
	ErrNotFound = errors.New("metadata: row not found")
	// ErrConflict says that the condition did not hold and nothing was written.
	// After a retry it may be the caller's own first try that stands there:
	// compare the row's nonce ([Settle] does).
	ErrConflict = errors.New("metadata: condition does not hold")
	// ErrUnknown says that a write may or may not have taken effect, now or later.
	ErrUnknown = errors.New("metadata: outcome unknown")
	// ErrUnavailable says that the table could not be asked; nothing was written.
	ErrUnavailable = errors.New("metadata: table unavailable")
	// ErrDenied says that credentials or permissions were refused.
	ErrDenied = errors.New("metadata: access denied")
	// ErrNoTable says that the table itself does not exist.
	ErrNoTable = errors.New("metadata: table does not exist")
	// ErrCorrupt says that a row, or the table's file, cannot be decoded.
	ErrCorrupt = errors.New("metadata: corrupt")
	// ErrTooLarge says that a row exceeds MaxRowSize.
	ErrTooLarge = errors.New("metadata: row too large")
)

// MaxRowSize bounds Key + Value of a row in bytes. DynamoDB ends at 400 KB.
const MaxRowSize = 384 << 10

// MaxPartitionSize and MaxSortSize bound the parts of a Key in bytes. DynamoDB ends
// a sort key at 1,024; one byte less leaves room for its successor, Sort + "\x00",
// as the bound of a range.
const (
	MaxPartitionSize = 1024
	MaxSortSize      = 1023
)

// Key names a row. Rows with one Partition are ordered by Sort, bytewise. Both are
// non-empty, valid UTF-8 (DynamoDB takes nothing else) and bounded by
// MaxPartitionSize and MaxSortSize.
type Key struct {
	Partition string
	Sort      string
}

func (k Key) String() string { return k.Partition + " " + k.Sort }

// Stamp orders the versions of a row: first by Epoch, then by Sequence. The zero
// Stamp is below every stamp that is written: no row may carry it.
type Stamp struct {
	Epoch    uint64
	Sequence uint64
}

// Compare returns -1, 0 or 1.
func (s Stamp) Compare(o Stamp) int {
	if c := cmp.Compare(s.Epoch, o.Epoch); c != 0 {
		return c
	}
	return cmp.Compare(s.Sequence, o.Sequence)
}

func (s Stamp) String() string { return fmt.Sprintf("%d.%d", s.Epoch, s.Sequence) }

// Row is one row of the table.
type Row struct {
	Key
	Stamp Stamp
	// Nonce is random for each write (not for each try of it), so that a writer
	// can recognise its own row after an answer was lost. Never zero: [NewNonce].
	Nonce uint64
	// Value may be empty; nil and empty are one.
	Value []byte
}

// ConditionKind says what must hold for a write to happen.
type ConditionKind uint8

const (
	// Always holds.
	Always ConditionKind = iota
	// Absent holds when no row has the key.
	Absent
	// Equal holds when the row exists and its stamp equals Condition.Stamp.
	Equal
	// Below holds when the row is absent or its stamp is below Condition.Stamp.
	Below
)

// Condition guards a write.
type Condition struct {
	Kind  ConditionKind
	Stamp Stamp
}

// IfAbsent, IfEqual and IfBelow are the conditions that writes use.
func IfAbsent() Condition       { return Condition{Kind: Absent} }
func IfEqual(s Stamp) Condition { return Condition{Kind: Equal, Stamp: s} }
func IfBelow(s Stamp) Condition { return Condition{Kind: Below, Stamp: s} }

// Consistency of a read.
type Consistency bool

const (
	// Strong reads see every write that was answered before they began.
	Strong Consistency = true
	// Eventual reads may be older and cost half.
	Eventual Consistency = false
)

// Range asks for rows of one partition key: From <= Sort < To, bytewise. An empty
// To is no upper bound. Reverse gives the highest first.
type Range struct {
	Partition   string
	From, To    string
	Reverse     bool
	Limit       int // > 0: at most so many rows
	Consistency Consistency
}

// Table is the one table that holds the truth: single-row conditional writes and
// ordered ranges, nothing more. All methods may be called at once from many
// goroutines. Backends try each request once; tries, metrics and faults are
// decorators above them. A cancelled context ends a read with an error that wraps
// context's own as well as ErrUnavailable, and a write with ErrUnknown (or
// ErrUnavailable where it certainly did not happen).
type Table interface {
	// Get returns the row of the key, or ErrNotFound.
	Get(ctx context.Context, key Key, c Consistency) (Row, error)
	// Put writes the row if the condition holds, else returns ErrConflict. Once it
	// returned nil the row is durable. Atomic for the one row. The row's Value may
	// be used again by the caller once Put returned, and what Get gives is the
	// caller's own. ErrTooLarge, without a write, when the row exceeds MaxRowSize.
	Put(ctx context.Context, row Row, cond Condition) error
	// Delete removes the row if the condition holds, else returns ErrConflict.
	// Removing an absent row with Always or Below is no error.
	Delete(ctx context.Context, key Key, cond Condition) error
	// Range returns rows in order. It may return fewer than Limit although more
	// exist (a page ends at about 1 MB); only an empty answer means the end.
	// [Rows] goes over all pages.
	Range(ctx context.Context, r Range) ([]Row, error)
	// String describes the table for logs, without secrets: "dynamodb://table".
	String() string
}
