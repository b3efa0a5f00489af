package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/segments/batch"
)

// producerTopic is what a producer knows of a topic.
type producerTopic struct {
	p    *Producer
	name string

	// loaded is closed when the partitions are known, or err is.
	loaded chan struct{}
	err    error

	mu         sync.RWMutex
	partitions []*partition
	count      atomic.Int32 // of partitions
	checked    time.Time
	checking   bool

	// sticky is the partition for records without a key, until its batch is sealed.
	sticky atomic.Int32
}

// topic returns a topic whose partitions are known, asking for them the first time.
func (p *Producer) topic(ctx context.Context, name string) (*producerTopic, error) {
	p.topicsMu.RLock()
	t := p.topics[name]
	p.topicsMu.RUnlock()
	if t == nil {
		var mine bool
		if t, mine = p.addTopic(name); mine {
			t.load(ctx)
		}
	}
	select {
	case <-t.loaded:
	default:
		select {
		case <-t.loaded:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.ctx.Done():
			return nil, errProducerClosed
		}
	}
	if t.err != nil {
		return nil, t.err
	}
	t.refresh()
	return t, nil
}

// addTopic returns the topic, and whether the caller has to load it.
func (p *Producer) addTopic(name string) (*producerTopic, bool) {
	p.topicsMu.Lock()
	defer p.topicsMu.Unlock()
	if t := p.topics[name]; t != nil {
		return t, false
	}
	t := &producerTopic{p: p, name: name, loaded: make(chan struct{})}
	p.topics[name] = t
	return t, true
}

// forgetTopic makes the next record ask again. Batches that are on their way go on.
func (p *Producer) forgetTopic(t *producerTopic) {
	p.topicsMu.Lock()
	defer p.topicsMu.Unlock()
	if p.topics[t.name] == t {
		delete(p.topics, t.name)
		p.retired = append(p.retired, t)
	}
}

func (t *producerTopic) load(ctx context.Context) {
	defer close(t.loaded)
	ctx, cancel := t.p.within(ctx)
	defer cancel()
	n, err := t.p.partitionCount(ctx, t.name)
	if err != nil {
		t.err = err
		t.p.forgetTopic(t)
		return
	}
	t.grow(n)
	t.sticky.Store(rand.Int32N(n))
}

func (p *Producer) partitionCount(ctx context.Context, topic string) (int32, error) {
	d, err := p.c.DescribeTopic(ctx, topic)
	if err != nil {
		return 0, err
	}
	if d.Partitions < 1 {
		return 0, invalidf("topic %q: the server says that it has %d partitions", topic, d.Partitions)
	}
	return d.Partitions, nil
}

// grow takes up new partitions; topics never shrink.
func (t *producerTopic) grow(n int32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := int32(len(t.partitions)); i < n; i++ {
		t.partitions = append(t.partitions, newPartition(t.p, t, i))
	}
	t.count.Store(int32(len(t.partitions)))
	t.checked = time.Now()
}

// all returns the partitions known now.
func (t *producerTopic) all() []*partition {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.partitions[:len(t.partitions):len(t.partitions)]
}

// refresh asks for the partition count again, in the background, when it is old.
func (t *producerTopic) refresh() {
	t.mu.RLock()
	fresh := t.checking || time.Since(t.checked) < t.p.cfg.MetadataMaxAge
	t.mu.RUnlock()
	if fresh {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.checking {
		return
	}
	t.checking = true
	t.p.senders.Go(func() {
		n, err := t.p.partitionCount(t.p.ctx, t.name)
		if err == nil {
			t.grow(n)
		}
		t.mu.Lock()
		// On failure too: appends will tell if the topic is gone.
		t.checked, t.checking = time.Now(), false
		t.mu.Unlock()
	})
}

// recheck asks for the partition count now: a caller named a partition that was not there.
func (t *producerTopic) recheck(ctx context.Context) error {
	ctx, cancel := t.p.within(ctx)
	defer cancel()
	n, err := t.p.partitionCount(ctx, t.name)
	if err == nil {
		t.grow(n)
	}
	return err
}

// choose finds the partition for a record.
func (t *producerTopic) choose(rec *Record, how Partitioning) (*partition, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := int32(len(t.partitions))
	switch {
	case how == PartitionAsGiven && rec.Partition >= n:
		err := invalidf("the topic has partitions 0 to %d", n-1)
		err.Topic, err.Partition, err.Reason = t.name, rec.Partition, reasonPartitionNotFound
		return nil, err
	case how == PartitionAsGiven && rec.Partition >= 0:
		return t.partitions[rec.Partition], nil
	case rec.Key != nil:
		return t.partitions[batch.PartitionForKey(rec.Key, n)], nil
	default:
		return t.partitions[t.sticky.Load()], nil
	}
}

// rotate moves records without keys on from a partition whose batch was sealed.
func (t *producerTopic) rotate(from int32) {
	if t.sticky.Load() == from {
		t.sticky.CompareAndSwap(from, (from+1)%t.count.Load())
	}
}

// makeTopic sends the first record of a topic that does not exist in the API's plain form, which makes the
// topic if the cluster does that.
func (p *Producer) makeTopic(ctx context.Context, rec *Record, done func(Ack, error)) error {
	req := &varvev1.ProduceRequest{Topic: rec.Topic, Acks: p.cfg.Acks.message(), Records: []*varvev1.Record{plainRecord(rec)}}
	if p.cfg.Partitioning == PartitionAsGiven && rec.Partition >= 0 {
		req.Partition = &rec.Partition
	}
	ctx, cancel := p.within(ctx)
	defer cancel()
	res, err := call(ctx, p.c, onlyDefinite, func(ctx context.Context, e *endpoint) (*varvev1.ProduceResponse, error) {
		return e.log.Produce(ctx, req)
	})
	ack := Ack{Topic: rec.Topic, BaseOffset: -1, LastOffset: -1, Records: 1, Acks: p.cfg.Acks}
	var failure *Error
	switch {
	case err == nil && len(res.GetResults()) == 1 && res.GetResults()[0].GetError() == nil:
		ack = ackOf(rec.Topic, res.GetResults()[0])
	case err == nil && len(res.GetResults()) == 1:
		r := res.GetResults()[0]
		failure = errorOfResult(rec.Topic, r.GetPartition(), r.GetError())
	case err == nil:
		failure = newError(connect.CodeInternal, "the server's answer does not name one partition")
		failure.UnknownOutcome = true
	case errors.As(err, &failure):
	default:
		return err
	}
	if failure != nil && !failure.UnknownOutcome {
		return failure
	}
	err = nil
	if failure != nil {
		err = failure
	}
	if p.cfg.OnBatch != nil {
		p.cfg.OnBatch(ack, err)
	}
	if done != nil {
		done(ack, err)
	}
	return nil
}

func plainRecord(rec *Record) *varvev1.Record {
	m := &varvev1.Record{Key: rec.Key, Value: rec.Value}
	if !rec.Timestamp.IsZero() {
		ms := rec.Timestamp.UnixMilli()
		m.Timestamp = &ms
	}
	for _, h := range rec.Headers {
		m.Headers = append(m.Headers, &varvev1.Header{Key: h.Key, Value: h.Value})
	}
	return m
}
