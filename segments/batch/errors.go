package batch

import "errors"

// Every error of this package wraps exactly one of these, with the reason and the
// place behind it.
var (
	// ErrTruncated says that the bytes end before the batch does.
	ErrTruncated = errors.New("batch: truncated")
	// ErrCorrupt says that the bytes disagree with their CRC, or that the length
	// field is impossible: they changed since they were written.
	ErrCorrupt = errors.New("batch: corrupt")
	// ErrUnsupported says that the batch is of another magic or codec, or has
	// attributes that are not known here.
	ErrUnsupported = errors.New("batch: unsupported")
	// ErrTooLarge says that the batch, its inflated records, one record, or the
	// count of records is over its limit.
	ErrTooLarge = errors.New("batch: too large")
	// ErrInvalid says that the bytes are as their writer made them, but break a
	// rule: a count that lies, records that do not parse or inflate, a control
	// batch, bytes after the batch.
	ErrInvalid = errors.New("batch: invalid")
)
