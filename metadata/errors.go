package metadata

import "errors"

// Errors of the log's own rules, on top of those that a [Table] returns.
var (
	// ErrInvalid says that the request breaks a rule whatever the state is.
	ErrInvalid = errors.New("invalid")
	// ErrFenced says that this gateway's journal was sealed: it must not decide
	// anything any more.
	ErrFenced = errors.New("fenced: this gateway's journal is sealed")
	// ErrClosed says that the partition takes no appends for ever: its topic is deleted.
	ErrClosed = errors.New("partition is closed: its topic was deleted")
	// ErrHeld says that another live gateway sequences the partition.
	ErrHeld = errors.New("partition is sequenced by another gateway")
	// ErrBusy says that the same call works in a moment.
	ErrBusy = errors.New("partition is busy")
	// ErrTopicNotFound says that there is no topic of that name.
	ErrTopicNotFound = errors.New("topic not found")
	// ErrTopicExists says that a topic of that name is there already.
	ErrTopicExists = errors.New("topic exists already")
	// ErrIndexMoved says that rows vanished under a reader of an older view: take
	// a new view and begin again.
	ErrIndexMoved = errors.New("metadata: the index moved under the reader")
	// ErrHole says that a journal's numbers are not contiguous where they must be.
	ErrHole = errors.New("metadata: hole in a journal")
)
