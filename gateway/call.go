package gateway

import (
	"sync/atomic"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// call is the batches of one request on their way: nobody waits for one of them alone, so
// that a request for ten thousand partitions is not ten thousand goroutines.
type call struct {
	batches []appending
	left    atomic.Int64
	done    chan struct{} // closed when none is left
	arrived int64         // of intake's arrived, what is its own
	refused error         // of all: nothing was gathered
	ended   error         // of those that had no result when nobody waited any more
}

// appending is one batch on its way.
type appending struct {
	span segments.SpanID
	data []byte // nil once it was gathered
	// memory is what data lies in, if that is used again.
	memory *body
	info   segments.BatchInfo
	size   int64
	call   *call
	// segment is the one that has it, upTo where it ends in its buffer file.
	segment *openSegment
	upTo    int64
	// unsynced is why it is not known to be on disk.
	unsynced error
	settled  atomic.Bool // result is there, and stays
	result   appended
	index    int // in the request
}

// newCall makes room for n batches.
func newCall(n int) *call {
	if n == 1 { // most calls: one allocation, not two
		c := new(struct {
			call
			one [1]appending
		})
		c.batches, c.done = c.one[:0], make(chan struct{})
		return &c.call
	}
	return &call{batches: make([]appending, 0, n), done: make(chan struct{})}
}

// add takes a batch, validated, which is the index-th of its request; data must not change afterwards.
func (c *call) add(index int, span segments.SpanID, data []byte, info segments.BatchInfo) {
	c.batches = append(c.batches, appending{span: span, data: data, info: info, size: int64(len(data)), call: c, index: index})
	c.left.Add(1)
}

// outcome is what the caller is told about the i-th batch, once [intake.append] has returned.
func (c *call) outcome(i int) appended {
	a := &c.batches[i]
	switch {
	case c.refused != nil:
		return appended{err: c.refused}
	case a.info.Ack != segments.AckBuffered && a.settled.Load():
		return a.result
	case a.info.Ack != segments.AckBuffered:
		return appended{err: c.ended}
	case a.segment == nil, a.unsynced != nil && a.settled.Load(): // refused; or committed meanwhile, and its file removed
		return appended{start: metadata.NoOffset, err: a.result.err}
	case a.unsynced != nil:
		return appended{start: metadata.NoOffset, err: a.unsynced}
	}
	return appended{start: metadata.NoOffset}
}

// settle says what became of a batch, once.
func (a *appending) settle(result appended) {
	a.result = result
	a.settled.Store(true)
	if a.call.left.Add(-1) == 0 {
		close(a.call.done)
	}
}

// appended is what becomes of a batch.
type appended struct {
	verdict metadata.BatchVerdict
	start   int64
	err     error
}
