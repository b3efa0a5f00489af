package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments/batch"
)

const (
	// grace is what requests in flight have to be answered in once a run was interrupted.
	grace = 10 * time.Second
	// refusedPause follows an answer that says "later".
	refusedPause = 20 * time.Millisecond
	// maxSenders bounds connections and memory.
	maxSenders = 20_000
)

// load is producers that send ready batches.
type load struct {
	topic      string
	partitions int32
	shape      batchShape
	// producers have inFlight requests open each, over as many connections.
	producers, inFlight int
	acks                client.Acks
	// idempotent gives each request in flight a producer id of its own.
	idempotent func(context.Context) (batch.BuildOptions, error)
	// spread, if not 0: a request holds one record for each of so many partitions.
	spread int32
	// rate of records a second; 0 is as fast as it goes.
	rate float64
	// clock gives a batch its time, in ms since 1970; nil is now.
	clock func() int64
	// send delivers one request.
	send func(context.Context, []byte) error

	senders []*sender
}

// limit ends a run: the first that is reached. Zero values are none.
type limit struct {
	duration time.Duration
	records  int64
	bytes    int64
}

// loadResult is what producers did.
type loadResult struct {
	Records int64         `json:"records"`
	Batches int64         `json:"batches"`
	Bytes   int64         `json:"bytes"`
	Refused int64         `json:"refused"` // answers that said "later"; those batches were sent again
	Seconds float64       `json:"seconds"`
	Rate    float64       `json:"records_per_second"`
	MiB     float64       `json:"mib_per_second"`
	Ack     quantiles     `json:"ack"`
	elapsed time.Duration `json:"-"`
}

func (r *loadResult) conclude(elapsed time.Duration, l *latencies) {
	r.elapsed, r.Seconds, r.Ack = elapsed, elapsed.Seconds(), l.quantiles()
	if r.Seconds > 0 {
		r.Rate, r.MiB = float64(r.Records)/r.Seconds, float64(r.Bytes)/mib/r.Seconds
	}
}

func (r *loadResult) text() string {
	text := fmt.Sprintf("  %-11s %.0f records/s   %.1f MiB/s   (%d records in %d batches, %s, in %.1f s)\n  %-11s %s\n",
		"throughput", r.Rate, r.MiB, r.Records, r.Batches, sizeText(uint64(r.Bytes)), r.Seconds, "ack", r.Ack)
	if r.Refused > 0 {
		text += fmt.Sprintf("  %-11s %d answers said \"later\"; their batches were sent again\n", "slowed", r.Refused)
	}
	return text
}

// sender has one request in flight.
type sender struct {
	load      *load
	ready     *readyRequest
	partition int32
	producer  batch.BuildOptions
	sequences map[int32]int32
}

// prepare builds what is sent.
func (l *load) prepare(ctx context.Context) error {
	count := l.producers * l.inFlight
	if count < 1 || count > maxSenders {
		return usagef("%d requests in flight: want 1 to %d", count, maxSenders)
	}
	acks := l.wireAcks()
	random := newRandom()
	for i := range count {
		s := &sender{load: l, partition: int32(i) % l.partitions, producer: batch.NoProducer, sequences: make(map[int32]int32)}
		var err error
		if l.spread > 0 {
			s.ready, err = newSpreadRequest(l, random, acks)
		} else if s.ready, err = newReadyRequest(l.shape, random); err == nil {
			s.ready.address(l.topic, s.partition, acks)
		}
		if err != nil {
			return err
		}
		if l.idempotent != nil {
			if s.producer, err = l.idempotent(ctx); err != nil {
				return err
			}
		}
		l.senders = append(l.senders, s)
	}
	return nil
}

// newRandom is a fast source of bytes that do not compress, others at each start.
func newRandom() *rand.ChaCha8 {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	return rand.NewChaCha8(seed)
}

// newSpreadRequest builds a request of one record for each of many partitions.
func newSpreadRequest(l *load, random *rand.ChaCha8, acks varvev1.Acks) (*readyRequest, error) {
	request := &varvev1.ProduceRequest{Topic: l.topic, Acks: acks}
	for i := range l.spread {
		value := make([]byte, l.shape.recordSize)
		// It never fails.
		_, _ = random.Read(value)
		request.Records = append(request.Records, &varvev1.Record{Value: value, Partition: &i})
	}
	data, err := proto.Marshal(request)
	return &readyRequest{records: int(l.spread), request: data}, err
}

// quota hands out what is left of a run.
type quota struct {
	records, bytes atomic.Int64
	began          time.Time
	end            time.Time
	interval       float64 // nanoseconds a record; 0: no pace
	paced          atomic.Int64
}

func newQuota(l limit, rate float64) *quota {
	q := &quota{began: time.Now()}
	q.records.Store(orEndless(l.records))
	q.bytes.Store(orEndless(l.bytes))
	if l.duration > 0 {
		q.end = q.began.Add(l.duration)
	}
	if rate > 0 {
		q.interval = float64(time.Second) / rate
	}
	return q
}

func orEndless(n int64) int64 {
	if n == 0 {
		return math.MaxInt64
	}
	return n
}

// take waits until the next batch is due, and returns when that was. ok is false when the run is over: also when
// senders are too few for the rate, so that what is due lags behind.
func (q *quota) take(ctx context.Context, records, bytes int64) (due time.Time, ok bool) {
	due = time.Now()
	if q.interval > 0 {
		due = q.began.Add(time.Duration(float64(q.paced.Add(records)-records) * q.interval))
	}
	if !q.end.IsZero() && (due.After(q.end) || time.Now().After(q.end)) || ctx.Err() != nil {
		return due, false
	}
	if q.records.Add(-records) <= -records || q.bytes.Add(-bytes) <= -bytes {
		return due, false
	}
	if wait := time.Until(due); wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return due, false
		}
	}
	return due, true
}

// run sends until the limit, or until ctx ends, which is no error.
func (l *load) run(ctx context.Context, limit limit) (loadResult, error) {
	var result loadResult
	times := newLatencies()
	q := newQuota(limit, l.rate)
	answers, stop := outlive(ctx)
	defer stop()
	group, running := errgroup.WithContext(ctx)
	for _, s := range l.senders {
		group.Go(func() error { return s.run(running, answers, q, times, &result) })
	}
	err := group.Wait()
	result.conclude(time.Since(q.began), times)
	if err != nil && ctx.Err() == nil {
		return result, err
	}
	return result, nil
}

// outlive returns a context that ends a little after ctx, for answers that are on their way.
func outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(grace, cancel)
		context.AfterFunc(longer, func() { timer.Stop() })
	})
	return longer, func() { unhook(); cancel() }
}

func (s *sender) run(ctx, answers context.Context, q *quota, times *latencies, result *loadResult) error {
	p := s.ready
	for {
		due, ok := q.take(ctx, int64(p.records), p.size())
		if !ok {
			return nil
		}
		s.next()
		for {
			err := s.load.send(answers, p.request)
			if err == nil {
				break
			}
			var refused *refusal
			if !errors.As(err, &refused) || !refused.temporary() {
				return err
			}
			atomic.AddInt64(&result.Refused, 1)
			if !sleep(ctx, refusedPause) {
				return nil
			}
		}
		times.add(time.Since(due))
		atomic.AddInt64(&result.Batches, 1)
		atomic.AddInt64(&result.Records, int64(p.records))
		atomic.AddInt64(&result.Bytes, p.size())
	}
}

// next makes the request the next one: time, partition, sequence.
func (s *sender) next() {
	if s.ready.batch == nil {
		return
	}
	if turn := int32(len(s.load.senders)); s.load.partitions > turn {
		// Fewer senders than partitions: each goes round its share.
		s.partition = (s.partition + turn) % s.load.partitions
		s.ready.address(s.load.topic, s.partition, s.load.wireAcks())
	}
	producer := s.producer
	if s.load.idempotent != nil {
		producer.BaseSequence = s.sequences[s.partition]
		s.sequences[s.partition] += int32(s.ready.records)
	}
	now := time.Now().UnixMilli()
	if s.load.clock != nil {
		now = s.load.clock()
	}
	s.ready.stamp(now, producer)
}

func (l *load) wireAcks() varvev1.Acks {
	if l.acks == client.AcksBuffered {
		return varvev1.Acks_ACKS_BUFFERED
	}
	return varvev1.Acks_ACKS_COMMITTED
}

// sleep returns false when ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
