package client

import (
	"fmt"
	"math"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/varvelog/varve/segments/batch"
)

// lane is what a producer knows of one partition: batches in order, the producer id that they carry,
// and what became of those that were sent. It decides what to do next and does nothing itself: no
// goroutines, no clock, no I/O. Its owner holds mu of the partition around every call.
//
//	open ─seal─> waiting ─next─> sending ─result─> acked ─┐
//	                ^               │                     ├─ from the front ─> finished
//	                └── retriable ──┘           failed ───┘
//
// Order rests on sequence numbers: a server takes a batch only after the one before it. So batches of a
// lane may be in flight together, and after any failure the lane waits until nothing is in flight,
// then begins again at the first batch without an ack, one at a time until one succeeds.
type lane struct {
	where      topicPartition
	idempotent bool
	// repeatUnknown: without idempotence, send again what may have been appended.
	repeatUnknown bool

	identity batch.BuildOptions // producer id and epoch; BaseSequence is the next one
	// known: identity holds an id. fresh: the next one has to be new, not the producer's first.
	known, fresh bool
	// identifying: somebody is asking for an id.
	identifying bool

	// expected is the offset that the next batch sealed must get; noOffset: any.
	expected int64
	// ended is why nothing more is sent: a batch failed, and offsets are expected. (Another writer's records may be
	// as many as those of the batch, so that the next one would fit behind them.)
	ended *Error

	open    *pending
	batches []*pending // sealed, oldest first; those at the front are not finished
	sending int
	// handing: a batch is on its way out whose bytes have not all left, so that a later one, on
	// another connection, could overtake it.
	handing *pending
	// probing: one batch at a time, until one succeeds.
	probing bool
	// moving: what follows goes to another server, when nothing is in flight any more.
	moving bool
	// lost: a batch failed that had a sequence, so that those after it need to be given anew.
	lost bool
	// forgotten: the server no longer knows the producer id.
	forgotten bool
	holdUntil time.Time
}

// noOffset is where no offset is expected.
const noOffset = -1

// maxSequence is the last sequence number that a producer id has.
const maxSequence = math.MaxInt32

// window is how many batches of one partition may be under way. Servers remember the last five.
const window = 5

type pendingState uint8

const (
	waiting pendingState = iota
	sending
	acked
	failed
)

// pending is a batch on its way.
type pending struct {
	builder  *batch.Builder     // until it is built
	data     []byte             // once it is built,
	built    batch.BuildOptions // with these
	carries  batch.BuildOptions
	expected int64 // offset that it must get, or noOffset
	count    int
	size     int // bytes accounted for in the producer's buffer
	deadline time.Time
	waiters  []waiter
	done     chan struct{} // closed when finished

	state pendingState
	// ready: it may be sealed though it is not full.
	ready bool
	// doubtful: some attempt's outcome is unknown.
	doubtful bool
	// follows: it was sent while one before it had no ack, so that it may be refused for coming early.
	follows bool
	ack     Ack
	err     error
}

// waiter wants to know about the record at that index of its batch.
type waiter struct {
	index int
	done  func(Ack, error)
}

// step says what a lane's owner is to do.
type step struct {
	// identify: get a producer id (a new one, when fresh) and call identified.
	identify, fresh bool
	// send: build it if it is not, send it and call result.
	send *pending
	// wait: ask again after this long; 0 with nothing else set: after the next event.
	wait time.Duration
}

// seal closes the open batch.
func (l *lane) seal() {
	l.open.expected = l.expected
	if l.expected != noOffset {
		l.expected += int64(l.open.count)
	}
	l.batches = append(l.batches, l.open)
	l.open = nil
}

// next decides what to do now.
func (l *lane) next(now time.Time) step {
	l.expire(now)
	if l.lost && l.sending == 0 {
		l.renumber()
	}
	if l.lost || l.handing != nil || l.sending > 0 && (l.probing || l.moving || !l.idempotent) {
		return step{}
	}
	if (l.firstWaiting() == nil || l.ended != nil) && l.open != nil && l.open.ready {
		l.seal()
	}
	if l.ended != nil {
		l.failWaiting(l.followsFailure())
		return step{}
	}
	b := l.firstWaiting()
	if b == nil || !l.inWindow(b) {
		return step{}
	}
	if wait := l.holdUntil.Sub(now); wait > 0 {
		return step{wait: wait}
	}
	if l.idempotent && !l.number(b) {
		if l.sending > 0 || l.identifying {
			return step{}
		}
		l.identifying = true
		return step{identify: true, fresh: l.fresh}
	}
	b.state, b.follows = sending, l.firstUnsettled() != b
	l.sending++
	l.handing = b
	return step{send: b}
}

func (l *lane) firstWaiting() *pending {
	for _, b := range l.batches {
		if b.state == waiting {
			return b
		}
	}
	return nil
}

// inWindow reports whether b is near enough to the first batch without an ack, which may have to be sent
// again and recognised then, however many after it were acked.
func (l *lane) inWindow(b *pending) bool {
	return slices.Index(l.batches, b)-slices.Index(l.batches, l.firstUnsettled()) < window
}

// number gives b its sequence, unless it has one. It returns false when the lane needs a producer id.
func (l *lane) number(b *pending) bool {
	if b.numbered() {
		return true
	}
	if !l.known {
		return false
	}
	if int64(l.identity.BaseSequence)+int64(b.count) > maxSequence {
		l.known = false
		return false
	}
	b.carries = l.identity
	l.identity.BaseSequence += int32(b.count)
	return true
}

// identified takes the id that was asked for.
func (l *lane) identified(id int64, epoch int16) {
	l.identity = batch.BuildOptions{ProducerID: id, ProducerEpoch: epoch}
	l.known, l.fresh, l.identifying = true, true, false
	// Its first batch alone: a second one that arrives before it would come from an unknown producer.
	l.probing = true
}

// unidentified takes the failure to get one.
func (l *lane) unidentified(err *Error, now time.Time, delay time.Duration) {
	l.identifying = false
	if err.Retriable {
		l.holdUntil = now.Add(delay)
		return
	}
	l.failWaiting(err)
	l.end(err)
}

func (l *lane) failWaiting(err *Error) {
	for _, b := range l.batches {
		if b.state == waiting {
			b.fail(err)
		}
	}
}

// end sends no more if offsets are expected.
func (l *lane) end(err *Error) {
	if l.expected != noOffset && l.ended == nil {
		l.ended = err
	}
}

// handedOver says that b has left, so that the next may follow.
func (l *lane) handedOver(b *pending) {
	if l.handing == b {
		l.handing = nil
	}
}

// result takes what became of a batch that was sent. delay is how long to wait before it is sent again,
// if it is.
func (l *lane) result(b *pending, ack Ack, err *Error, now time.Time, delay time.Duration) {
	l.handedOver(b)
	l.sending--
	if err != nil && err.Reason == reasonForgotten {
		// It is in the log, but the server no longer knows where.
		ack, err = Ack{BaseOffset: -1, LastOffset: -1, Timestamp: ack.Timestamp, Duplicate: true}, nil
	}
	if err == nil {
		b.state, b.ack = acked, ack
		l.probing = false
		l.holdUntil = time.Time{}
		return
	}
	b.state = waiting
	b.doubtful = b.doubtful || err.UnknownOutcome
	switch {
	case b.follows && (err.Reason == reasonOutOfOrder || err.Reason == reasonUnknownProducer):
		// It overtook the one before it, or that one failed.
		l.probing = true
	case err.Reason == reasonUnknownProducer && b.numbered() && !b.doubtful && b.carries.BaseSequence > 0:
		// What was acked is safe, and this was never appended.
		l.lost, l.forgotten = true, true
	case l.repeats(err) && now.Add(delay).Before(b.deadline):
		l.probing = true
		l.holdUntil = now.Add(delay)
	default:
		l.fail(b, err)
	}
}

// repeats reports whether sending again can help, and is allowed.
func (l *lane) repeats(err *Error) bool {
	return err.Retriable && (l.idempotent || l.repeatUnknown || !err.UnknownOutcome)
}

// firstUnsettled is the first batch that is neither acked nor given up; nil if there is none.
func (l *lane) firstUnsettled() *pending {
	for _, b := range l.batches {
		if b.state < acked {
			return b
		}
	}
	return nil
}

// fail gives b up.
func (l *lane) fail(b *pending, err *Error) {
	if b.doubtful && !err.UnknownOutcome {
		// The last word was no, but an earlier try may have had a yes.
		doubt := *err
		doubt.UnknownOutcome = true
		err = &doubt
	}
	b.fail(err)
	l.end(err)
	l.lost = l.lost || b.numbered()
}

func (b *pending) fail(err error) { b.state, b.err = failed, err }

// numbered reports whether b has a producer id and a sequence.
func (b *pending) numbered() bool { return b.carries.ProducerID != batch.NoProducer.ProducerID }

// expire gives up what waited too long.
func (l *lane) expire(now time.Time) {
	for _, b := range l.batches {
		if b.state != waiting {
			continue
		}
		if now.Before(b.deadline) {
			return // Those behind it are younger.
		}
		err := newError(connect.CodeDeadlineExceeded, "not delivered within the delivery timeout")
		err.Topic, err.Partition = l.where.topic, l.where.partition
		l.fail(b, err)
	}
}

// renumber takes the sequences back from what follows a lost batch, now that nothing is in flight. What
// precedes it keeps its own, since it may have been appended with it.
//
// If the lost batch may yet be appended, so may those after it that have an unknown outcome themselves: to
// send them again under another id could append them twice, so they fail. If it was refused for certain,
// they were too, or never will be taken: their sequences do not connect.
func (l *lane) renumber() {
	after, renew, doubt := l.forgotten, l.forgotten, false
	from := l.identity
	for _, b := range l.batches {
		if !b.numbered() {
			continue
		}
		if b.state == failed && !after {
			after, from = true, b.carries
		}
		if !after {
			continue
		}
		renew = renew || b.doubtful
		switch {
		case b.state == failed:
			doubt = doubt || b.doubtful
		case doubt && b.doubtful:
			b.fail(l.followsUnknown())
		}
		b.carries, b.doubtful = batch.NoProducer, false
	}
	if renew || from.ProducerID != l.identity.ProducerID {
		l.known = false
	} else {
		l.identity = from
	}
	l.lost, l.forgotten, l.probing = false, false, true
}

func (l *lane) followsUnknown() *Error {
	err := newError(connect.CodeAborted, "a batch before this one has an unknown outcome")
	err.Topic, err.Partition, err.UnknownOutcome = l.where.topic, l.where.partition, true
	return err
}

// followsFailure is the same failure for what was to follow.
func (l *lane) followsFailure() *Error {
	err := *l.ended
	err.Message, err.UnknownOutcome = "a batch before this one failed: "+err.Message, false
	return &err
}

// abandon fails everything that is not in flight, because the producer ends.
func (l *lane) abandon() {
	if l.open != nil {
		l.seal()
	}
	for _, b := range l.batches {
		if b.state == waiting {
			b.fail(abandoned(l.where, b.doubtful))
		}
	}
	l.lost = false
}

func abandoned(where topicPartition, doubtful bool) error {
	if !doubtful {
		return fmt.Errorf("producer: %w before the record was sent", ErrClosed)
	}
	err := newError(connect.CodeCanceled, "the producer was closed")
	err.Topic, err.Partition, err.UnknownOutcome = where.topic, where.partition, true
	err.cause = ErrClosed
	return err
}

// finished removes and returns what is done, oldest first; a batch that was acked waits for those before
// it, and one that was lost until those after it were renumbered.
func (l *lane) finished() []*pending {
	if l.lost {
		return nil
	}
	n := 0
	for n < len(l.batches) && l.batches[n].state >= acked {
		n++
	}
	if n == 0 {
		return nil
	}
	done := slices.Clone(l.batches[:n])
	l.batches = slices.Delete(l.batches, 0, n)
	return done
}
