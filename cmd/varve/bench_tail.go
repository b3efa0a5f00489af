package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments/batch"
)

const (
	// stampSize is what the time of the produce call takes at the front of a value.
	stampSize = 8
	// tailPatience is how long followers may take for what was acked.
	tailPatience = 10 * time.Second
)

// tailReport is what following a topic showed.
type tailReport struct {
	Followers int     `json:"followers"`
	Rate      float64 `json:"records_per_second"`
	Records   int64   `json:"records"` // produced; each follower gets all of them
	Missing   int64   `json:"missing"` // followers' records that did not arrive in time
	// Arrival is from the call of produce to the receipt by a follower, Ack to the answer.
	Arrival quantiles `json:"arrival"`
	Ack     quantiles `json:"ack"`
	Costs   costs     `json:"costs"`

	arrivals *latencies    // all of them, to be pooled with those of other runs
	produced time.Duration // for how long
}

// reached is how many records a second there were: fewer than asked for when producers were too few, or too slow.
func (r *tailReport) reached() float64 {
	if r.produced <= 0 {
		return 0
	}
	return float64(r.Records) / r.produced.Seconds()
}

func (r *tailReport) text() string {
	text := fmt.Sprintf("tail: %d records at %.0f a second, %d followers\n  %-11s %s\n  %-11s %s\n", r.Records, r.Rate, r.Followers,
		"arrival", r.Arrival, "ack", r.Ack)
	if r.Missing > 0 {
		text += fmt.Sprintf("  %-11s %d records did not arrive within %s\n", "missing", r.Missing, tailPatience)
	}
	return text + r.Costs.text()
}

// tailRun is one producer side and its followers.
type tailRun struct {
	topic    benchTopic
	wire     *wire
	acks     varvev1.Acks
	size     int
	epoch    time.Time // stamps count from it, on the monotonic clock
	arrivals *latencies
	acked    *latencies
}

func (a *app) benchTail(ctx context.Context, c *client.Client, t benchTopic, o *consumeOptions) (*tailReport, error) {
	acks := varvev1.Acks_ACKS_COMMITTED
	if o.acks == "buffered" {
		acks = varvev1.Acks_ACKS_BUFFERED
	}
	run := &tailRun{topic: t, wire: a.newWire(a.servers[0], o.followers+o.producers), acks: acks, size: int(o.recordSize),
		epoch: time.Now(), arrivals: newLatencies(), acked: newLatencies()}
	defer run.wire.close()
	ends, err := c.ListOffsets(ctx, t.name, client.LatestOffset())
	if err != nil {
		return nil, err
	}
	m, err := startMeter(ctx, c)
	if err != nil {
		return nil, err
	}
	following, stop := context.WithCancel(ctx)
	defer stop()
	sent := make(chan int64, o.followers) // how many records there were, once that is known
	missing := make(chan int64, o.followers)
	followers, following := errgroup.WithContext(following)
	for range o.followers {
		followers.Go(func() error {
			n, err := run.follow(following, ends, sent)
			missing <- n
			return err
		})
	}
	began := time.Now()
	records, produceErr := run.produce(ctx, o.producers, limit{duration: o.duration}, o.rate)
	produced := time.Since(began)
	if produceErr != nil {
		stop()
	}
	for range o.followers {
		sent <- records
	}
	err = followers.Wait()
	if produceErr != nil {
		return nil, produceErr
	}
	if err != nil && ctx.Err() == nil {
		return nil, err
	}
	r := &tailReport{Followers: o.followers, Rate: o.rate, Records: records, Arrival: run.arrivals.quantiles(), Ack: run.acked.quantiles(), arrivals: run.arrivals, produced: produced}
	for range o.followers {
		r.Missing += <-missing
	}
	r.Costs, err = m.stop(ctx, records*int64(run.size))
	return r, err
}

// produce appends stamped records one by one and returns how many were acked.
func (t *tailRun) produce(ctx context.Context, producers int, end limit, rate float64) (int64, error) {
	q := newQuota(end, rate)
	answers, stop := outlive(ctx)
	defer stop()
	group, running := errgroup.WithContext(ctx)
	counts := make([]int64, producers)
	for i := range producers {
		group.Go(func() error {
			partition := int32(i) % t.topic.partitions
			value := make([]byte, t.size)
			for {
				if _, ok := q.take(running, 1, int64(t.size)); !ok {
					return nil
				}
				began := time.Now()
				binary.BigEndian.PutUint64(value, uint64(began.Sub(t.epoch)))
				request, err := t.request(value, partition)
				if err != nil {
					return err
				}
				if err := t.wire.produce(answers, request); err != nil {
					return err
				}
				t.acked.add(time.Since(began))
				counts[i]++
				partition = (partition + int32(producers)) % t.topic.partitions
			}
		})
	}
	err := group.Wait()
	var total int64
	for _, n := range counts {
		total += n
	}
	if ctx.Err() != nil {
		err = nil
	}
	return total, err
}

func (t *tailRun) request(value []byte, partition int32) ([]byte, error) {
	b := batch.NewBuilder(batch.None)
	if err := b.Append(batch.Record{Timestamp: time.Now().UnixMilli(), Value: value}); err != nil {
		return nil, err
	}
	data, err := b.Build(batch.NoProducer)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&varvev1.ProduceRequest{Topic: t.topic.name, Partition: &partition, Acks: t.acks, RecordBatch: data})
}

// follow reads from the given offsets until it has as many records as sent tells, and returns how many
// were missing when patience ended.
func (t *tailRun) follow(ctx context.Context, from []client.PartitionOffset, sent <-chan int64) (missing int64, err error) {
	request := &varvev1.ConsumeRequest{Topic: t.topic.name}
	for _, p := range from {
		request.Partitions = append(request.Partitions, &varvev1.PartitionRange{
			Partition: p.Partition, Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: p.EndOffset}},
		})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := t.wire.consume(ctx, request)
	if err != nil {
		return 0, err
	}
	defer s.close()
	received := make(chan int64)
	failed := make(chan error, 1)
	go func() {
		defer close(received)
		failed <- t.receive(ctx, s, received)
	}()
	var got, want int64
	known := false
	var patience <-chan time.Time
	for !known || got < want {
		select {
		case n, ok := <-received:
			if !ok {
				return want - got, <-failed
			}
			got += n
		case want = <-sent:
			known = true
			patience = time.After(tailPatience)
		case <-patience:
			cancel()
			for range received {
			}
			return want - got, nil
		}
	}
	cancel()
	for range received {
	}
	return 0, nil
}

// receive reports how many records each message had, until the stream ends.
func (t *tailRun) receive(ctx context.Context, s *batchStream, received chan<- int64) error {
	for {
		m, err := s.next()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("a follower lost its stream: %w", err)
		}
		now := time.Since(t.epoch)
		var n int64
		for data, err := range batch.Split(m.batches) {
			if err != nil {
				return err
			}
			for record, err := range batch.Records(data, batch.Limits{}) {
				if err != nil {
					return err
				}
				if len(record.Value) < stampSize {
					return errors.New("a record without a stamp arrived: somebody else appends to the topic")
				}
				t.arrivals.add(now - time.Duration(binary.BigEndian.Uint64(record.Value)))
				n++
			}
		}
		select {
		case received <- n:
		case <-ctx.Done():
			return nil
		}
	}
}
