package client

import (
	"errors"
	"sync"
	"time"

	"github.com/varvelog/varve/segments/batch"
)

// maxBatchRecords is how many records servers accept in a batch.
const maxBatchRecords = 1 << 18

// partition owns a lane: it fills its batches, and gives their owners the answers.
type partition struct {
	p      *Producer
	topic  *producerTopic
	number int32

	queued bool // guarded by the ready queue

	mu   sync.Mutex
	lane lane
	// tries has the server that gets the batches which are under way: all of them the same one, since two would make
	// a batch overtake the one before it. detour: it is not the one that the client uses, which has failed us.
	tries  *tries
	detour bool
	// delivering: somebody is calling back; others leave what is finished to him, for the sake of order.
	delivering bool
	finished   []*pending
}

func newPartition(p *Producer, t *producerTopic, number int32) *partition {
	return &partition{
		p: p, topic: t, number: number, tries: p.c.newTries(),
		lane: lane{
			where:         topicPartition{t.name, number},
			idempotent:    !p.cfg.DisableIdempotence,
			repeatUnknown: p.cfg.RepeatUnknown,
			expected:      p.firstExpected(),
			probing:       true,
		},
	}
}

// add takes a record, for which room was reserved.
func (part *partition) add(rec *Record, done func(Ack, error)) error {
	now := time.Now()
	entry := entryOf(rec, now)
	part.mu.Lock()
	defer part.mu.Unlock()
	l := &part.lane
	if b := l.open; b != nil && b.count > 0 &&
		(b.count >= maxBatchRecords || b.builder.SizeWith(entry) > part.p.cfg.BatchBytes) {
		part.seal()
	}
	if l.open == nil {
		l.open = part.newPending(now)
	}
	b := l.open
	if err := b.builder.Append(entry); err != nil {
		if b.count == 0 {
			l.open = nil
		}
		return invalidf("%v", err)
	}
	if done != nil {
		b.waiters = append(b.waiters, waiter{b.count, done})
	}
	b.count++
	b.size += rec.size()
	if b.builder.UncompressedSize() >= part.p.cfg.BatchBytes {
		part.seal()
	} else if b.count == 1 {
		part.linger(b)
	}
	return nil
}

// seal closes the open batch and lets records without keys go elsewhere.
func (part *partition) seal() {
	part.lane.seal()
	part.topic.rotate(part.number)
	part.p.ready.push(part)
}

func (part *partition) newPending(now time.Time) *pending {
	builder, ok := part.p.builders.Get().(*batch.Builder)
	if !ok {
		builder = batch.NewBuilder(part.p.cfg.Codec)
	}
	return &pending{
		builder:  builder,
		carries:  batch.NoProducer,
		deadline: now.Add(part.p.cfg.DeliveryTimeout),
		done:     make(chan struct{}),
	}
}

// linger makes a new open batch ready after the linger time.
func (part *partition) linger(b *pending) {
	if part.p.cfg.Linger < 0 {
		b.ready = true
		part.p.ready.push(part)
		return
	}
	time.AfterFunc(part.p.cfg.Linger, func() {
		part.mu.Lock()
		b.ready = true
		part.mu.Unlock()
		part.p.ready.push(part)
	})
}

// hurry makes the open batch ready and returns the done channels of all that is not finished.
func (part *partition) hurry() []<-chan struct{} {
	part.mu.Lock()
	defer part.mu.Unlock()
	var all []<-chan struct{}
	for _, b := range part.finished {
		all = append(all, b.done)
	}
	for _, b := range part.lane.batches {
		all = append(all, b.done)
	}
	if b := part.lane.open; b != nil {
		b.ready = true
		all = append(all, b.done)
	}
	if len(all) > 0 {
		part.p.ready.push(part)
	}
	return all
}

// next is the lane's next step, and the server to send to; when the producer was abandoned it ends what is left.
func (part *partition) next() (step, *endpoint) {
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.p.ctx.Err() != nil {
		part.lane.abandon()
		return step{}, nil
	}
	inUse := &part.p.c.servers.current
	part.lane.moving = !part.detour && part.tries.last != inUse.Load()
	open := part.lane.open
	s := part.lane.next(time.Now())
	if open != nil && part.lane.open == nil {
		part.topic.rotate(part.number)
	}
	if s.wait > 0 {
		time.AfterFunc(s.wait, func() { part.p.ready.push(part) })
	}
	if s.send != nil && part.lane.sending == 1 {
		part.detour = part.tries.next() != inUse.Load()
	}
	return s, part.tries.last
}

func (part *partition) handedOver(b *pending) {
	part.mu.Lock()
	part.lane.handedOver(b)
	part.mu.Unlock()
	part.p.ready.push(part)
}

func (part *partition) result(b *pending, ack Ack, err *Error) {
	part.mu.Lock()
	defer part.mu.Unlock()
	var delay time.Duration
	if err == nil {
		part.tries.reset()
		part.p.c.servers.succeeded(part.tries.last)
	} else {
		part.tries.failed(err)
		delay = part.tries.delay(err)
	}
	part.lane.result(b, ack, err, time.Now(), delay)
}

func (part *partition) identified(id producerID, err error) {
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.p.ctx.Err() != nil {
		return // next abandons what is left.
	}
	if err != nil {
		part.lane.unidentified(errorOf(err), time.Now(), part.tries.wait.NextBackOff())
		return
	}
	part.lane.identified(id.id, id.epoch)
}

// deliver hands out what is finished: room in the buffer, then the answers, in order.
func (part *partition) deliver() {
	part.mu.Lock()
	defer part.mu.Unlock()
	part.finished = append(part.finished, part.lane.finished()...)
	if part.delivering {
		return
	}
	part.delivering = true
	for len(part.finished) > 0 {
		b := part.finished[0]
		part.mu.Unlock()
		part.answer(b)
		part.mu.Lock()
		part.finished = part.finished[1:]
		close(b.done)
	}
	part.finished, part.delivering = nil, false
}

// answer calls back.
func (part *partition) answer(b *pending) {
	p := part.p
	p.release(b.size)
	if b.err != nil && p.ctx.Err() != nil {
		p.lost.Store(true)
	}
	if errors.Is(b.err, ErrTopicNotFound) {
		p.forgetTopic(part.topic)
	}
	ack := b.ack
	if b.err != nil {
		ack = Ack{BaseOffset: -1, LastOffset: -1, Acks: p.cfg.Acks}
	}
	ack.Topic, ack.Partition, ack.Records = part.topic.name, part.number, b.count
	if p.cfg.OnBatch != nil {
		p.cfg.OnBatch(ack, b.err)
	}
	ack.Records = 1
	base := ack.BaseOffset
	for _, w := range b.waiters {
		if base >= 0 {
			ack.BaseOffset = base + int64(w.index)
			ack.LastOffset = ack.BaseOffset
		}
		w.done(ack, b.err)
	}
	b.waiters, b.data = nil, nil
}
