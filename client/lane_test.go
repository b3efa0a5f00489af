package client

import (
	"errors"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/varvelog/varve/segments/batch"
)

var epoch = time.UnixMilli(0)

// newLane has n batches of one record, waiting, and producer id 1.
func newLane(n int) (*lane, []*pending) {
	l := &lane{idempotent: true, expected: noOffset, where: topicPartition{"t", 0}}
	var all []*pending
	for range n {
		b := &pending{carries: batch.NoProducer, count: 1, deadline: epoch.Add(time.Hour), ready: true}
		l.open = b
		l.seal()
		all = append(all, b)
	}
	if s := l.next(epoch); !s.identify || s.fresh {
		panic("a new lane begins with the producer's id")
	}
	l.identified(1, 0)
	return l, all
}

// sendAll takes what the lane wants to send at once.
func sendAll(l *lane) (out []*pending) {
	for s := l.next(epoch); s.send != nil; s = l.next(epoch) {
		l.handedOver(s.send)
		out = append(out, s.send)
	}
	return out
}

func (l *lane) acks(bs ...*pending) {
	for _, b := range bs {
		l.result(b, Ack{}, nil, epoch, 0)
	}
}

func (l *lane) fails(err *Error, bs ...*pending) {
	for _, b := range bs {
		l.result(b, Ack{}, err, epoch, 0)
	}
}

func outOfOrder() *Error {
	err := newError(connect.CodeAborted, "gap")
	err.Reason, err.Retriable = reasonOutOfOrder, true
	return err
}

func lostAnswer() *Error {
	err := newError(connect.CodeUnavailable, "lost")
	err.Retriable, err.UnknownOutcome = true, true
	return err
}

func wantSent(t *testing.T, got []*pending, want ...*pending) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d batches were sent, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("batch %d is another", i)
		}
	}
}

func wantSequence(t *testing.T, b *pending, id int64, sequence int32) {
	t.Helper()
	if b.carries.ProducerID != id || b.carries.BaseSequence != sequence {
		t.Fatalf("the batch carries %+v, want id %d, sequence %d", b.carries, id, sequence)
	}
}

func TestLaneSendsOneThenAWindow(t *testing.T) {
	l, b := newLane(8)
	wantSent(t, sendAll(l), b[0])
	l.acks(b[0])
	wantSent(t, sendAll(l), b[1:6]...)
	l.acks(b[2]) // Acked before the one before it, whose answer is on the way.
	wantSent(t, l.finished(), b[0])
	l.acks(b[1])
	wantSent(t, l.finished(), b[1], b[2])
}

// However many after it are acked, a batch without an ack stays among those that servers remember.
func TestLaneWaitsForTheSlowest(t *testing.T) {
	l, b := newLane(10)
	l.acks(sendAll(l)...)
	wantSent(t, sendAll(l), b[1:6]...)
	l.acks(b[2:6]...)
	wantSent(t, sendAll(l))
	l.acks(b[1])
	wantSent(t, sendAll(l), b[6:10]...)
}

// Batches that were given up and not yet taken away must not fill the window: nothing would wake the lane.
func TestLaneGoesOnBehindWhatWasGivenUp(t *testing.T) {
	l, b := newLane(8)
	for _, old := range b[:6] {
		old.deadline = epoch
	}
	wantSent(t, sendAll(l), b[6])
}

func TestLaneSendsTheNextWhenThisOneHasLeft(t *testing.T) {
	l, b := newLane(3)
	l.acks(sendAll(l)...)
	if s := l.next(epoch); s.send != b[1] {
		t.Fatal("want the second batch")
	}
	if s := l.next(epoch); s.send != nil {
		t.Fatal("a batch was sent while another was on its way out")
	}
	l.handedOver(b[1])
	if s := l.next(epoch); s.send != b[2] {
		t.Fatal("want the third batch")
	}
}

func TestLaneAsksForOneID(t *testing.T) {
	l := &lane{idempotent: true, expected: noOffset}
	l.open = &pending{carries: batch.NoProducer, count: 1, deadline: epoch.Add(time.Hour), ready: true}
	if s := l.next(epoch); !s.identify {
		t.Fatal("want an id")
	}
	if s := l.next(epoch); s.identify {
		t.Fatal("a second id would give out the same sequences again")
	}
}

// After a gap all begins again at the first, with the same sequences, at once.
func TestLaneBeginsAgainInOrder(t *testing.T) {
	l, b := newLane(4)
	l.acks(sendAll(l)...)
	wantSent(t, sendAll(l), b[1:]...)
	l.fails(outOfOrder(), b[2])
	l.fails(lostAnswer(), b[1])
	wantSent(t, sendAll(l)) // b[3] is still out.
	l.fails(outOfOrder(), b[3])
	wantSent(t, sendAll(l), b[1])
	wantSequence(t, b[1], 1, 1)
	l.acks(b[1])
	wantSent(t, sendAll(l), b[2], b[3])
	wantSequence(t, b[3], 1, 3)
}

// What came before a batch that was refused keeps its sequence: it may be in the log with it.
func TestLaneKeepsWhatPrecedesALoss(t *testing.T) {
	l, b := newLane(4)
	l.acks(sendAll(l)...)
	wantSent(t, sendAll(l), b[1:]...)
	l.fails(lostAnswer(), b[1])
	l.fails(invalidf("broken"), b[2])
	l.fails(outOfOrder(), b[3])
	wantSent(t, sendAll(l), b[1])
	wantSequence(t, b[1], 1, 1)
	l.acks(b[1])
	wantSent(t, sendAll(l), b[3])
	wantSequence(t, b[3], 1, 2) // In the place of the one that never was.
	l.acks(b[3])
	wantSent(t, l.finished(), b...)
	if b[2].err == nil || errors.Is(b[2].err, ErrUnknownOutcome) {
		t.Errorf("want a definite failure, got %v", b[2].err)
	}
}

func TestLaneGivesUpWhatWasNeverSent(t *testing.T) {
	l, b := newLane(4)
	l.acks(sendAll(l)...)
	b[1].deadline = epoch
	wantSent(t, sendAll(l), b[2:]...)
	wantSequence(t, b[2], 1, 1)
	if b[1].err == nil || errors.Is(b[1].err, ErrUnknownOutcome) {
		t.Fatalf("want a definite failure, got %v", b[1].err)
	}
}

// A batch given up with an unknown outcome takes those with it that may follow it into the log; the
// others go on under a new id.
func TestLaneRenumbersAfterTheUnknown(t *testing.T) {
	l, b := newLane(4)
	l.acks(sendAll(l)...)
	wantSent(t, sendAll(l), b[1:]...)
	l.fails(lostAnswer(), b[2])
	l.fails(outOfOrder(), b[3])
	b[1].deadline = epoch
	l.fails(lostAnswer(), b[1])
	if s := l.next(epoch); !s.identify || !s.fresh {
		t.Fatalf("want a new id, got %+v", s)
	}
	l.identified(2, 0)
	wantSent(t, sendAll(l), b[3])
	wantSequence(t, b[3], 2, 0)
	for _, unknown := range b[1:3] {
		if !errors.Is(unknown.err, ErrUnknownOutcome) {
			t.Errorf("want ErrUnknownOutcome, got %v", unknown.err)
		}
	}
}

func TestLaneChangesItsIDWhenSequencesRunOut(t *testing.T) {
	l, b := newLane(3)
	l.acks(sendAll(l)...)
	l.identity.BaseSequence = maxSequence - 1
	wantSent(t, sendAll(l), b[1])
	l.acks(b[1])
	if s := l.next(epoch); !s.identify || !s.fresh {
		t.Fatalf("want a new id, got %+v", s)
	}
	l.identified(2, 0)
	wantSent(t, sendAll(l), b[2])
	wantSequence(t, b[2], 2, 0)
}

// With expected offsets nothing follows a batch that failed, though the next one might fit: somebody else may have
// appended as many records.
func TestLaneThatExpectsOffsetsEndsWithAFailure(t *testing.T) {
	l := &lane{idempotent: true, expected: 7, where: topicPartition{"t", 0}}
	var b []*pending
	for range 5 {
		b = append(b, &pending{carries: batch.NoProducer, count: 2, deadline: epoch.Add(time.Hour), ready: true})
		l.open = b[len(b)-1]
		l.seal()
	}
	l.identified(1, 0)
	l.acks(sendAll(l)...)
	wantSent(t, sendAll(l), b[1:]...)
	if b[0].expected != 7 || b[4].expected != 15 {
		t.Errorf("expected %d and %d, want 7 and 15", b[0].expected, b[4].expected)
	}
	mismatch := newError(connect.CodeFailedPrecondition, "no")
	mismatch.Reason = reasonOffsetMismatch
	l.fails(lostAnswer(), b[3])
	l.fails(mismatch, b[1])
	l.fails(outOfOrder(), b[2], b[4])
	last := &pending{carries: batch.NoProducer, count: 2, deadline: epoch.Add(time.Hour), ready: true}
	l.open = last
	b = append(b, last)
	wantSent(t, sendAll(l))
	wantSent(t, l.finished(), b...)
	for _, after := range b[1:] {
		// The sequence of the one in doubt does not connect any more: it will never be taken.
		if !errors.Is(after.err, ErrOffsetMismatch) || errors.Is(after.err, ErrUnknownOutcome) {
			t.Errorf("want a definite ErrOffsetMismatch, got %v", after.err)
		}
	}
}

// What goes to another server must not overtake what is still on its way to this one.
func TestLaneWaitsBeforeItMoves(t *testing.T) {
	l, b := newLane(4)
	l.acks(sendAll(l)...)
	if s := l.next(epoch); s.send != b[1] {
		t.Fatal("want the second batch")
	}
	l.handedOver(b[1])
	l.moving = true
	wantSent(t, sendAll(l))
	l.acks(b[1])
	wantSent(t, sendAll(l), b[2])
}
