package metadata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cenkalti/backoff/v5"
)

// Rows that are written rarely are JSON objects, so that people can read them in
// any console. Each has a "format", which a program that knows a lower one refuses;
// fields that it does not know within a format it knows are left out.

func encodeJSON(row any) []byte {
	value, err := json.Marshal(row)
	if err != nil {
		panic(err) // the row types hold nothing that JSON cannot
	}
	return value
}

func decodeJSON(row Row, into any) error {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(row.Value, &head); err != nil {
		return fmt.Errorf("%w: row %s: %v", ErrCorrupt, row.Key, err)
	}
	if head.Format != formatV1 {
		return fmt.Errorf("%w: row %s: format %d is not known here (this program knows %d): a newer varve wrote it",
			ErrCorrupt, row.Key, head.Format, formatV1)
	}
	if err := json.Unmarshal(row.Value, into); err != nil {
		return fmt.Errorf("%w: row %s: %v", ErrCorrupt, row.Key, err)
	}
	return nil
}

// replaced returns the stored row as its next version.
func replaced(row Row, value any) Row {
	return Row{Key: row.Key, Stamp: Stamp{1, row.Stamp.Sequence + 1}, Nonce: NewNonce(), Value: encodeJSON(value)}
}

// guard is the condition under which a row that was read, or not found (its stamp
// is zero), may be replaced.
func guard(was Stamp) Condition {
	if was == (Stamp{}) {
		return IfAbsent()
	}
	return IfEqual(was)
}

// getOrNone reads a row strongly. A row that is not there has the zero stamp.
func getOrNone(ctx context.Context, t Table, key Key) (Row, error) {
	row, err := t.Get(ctx, key, Strong)
	if errors.Is(err, ErrNotFound) {
		return Row{Key: key}, nil
	}
	return row, err
}

// update reads a row, lets change make its next value and writes that if nobody was
// quicker; else it begins again, with pauses, until the context ends. change is
// called once a round; it returns nil when there is nothing to write. The row
// returned is the one that stands there.
//
// A write of unknown outcome that was replaced since is tried again: use it only
// where change finds out what it did before, or where doing it twice is harmless.
func update(ctx context.Context, t Table, key Key, change func(Row) (any, error)) (Row, error) {
	var pauses backoff.BackOff
	for {
		was, err := getOrNone(ctx, t, key)
		if err != nil {
			return was, err
		}
		value, err := change(was)
		if err != nil || value == nil {
			return was, err
		}
		row := replaced(was, value)
		err = PutSettled(ctx, t, row, guard(was.Stamp), nil)
		if err == nil {
			return row, nil
		}
		if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrUnknown) || ctx.Err() != nil {
			return was, err
		}
		if pauses == nil {
			pauses = DefaultBackOff()
			pauses.Reset()
		}
		if stop := wait(ctx, pauses); stop != nil {
			return was, fmt.Errorf("%w; %w", stop, err)
		}
	}
}
