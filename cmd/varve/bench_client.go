package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/client"
)

// throughClient runs the load by the Go client: each producer gives its records one by one to one
// client.Producer, so that the times of acks include gathering.
func (l *load) throughClient(ctx context.Context, c *client.Client, end limit) (loadResult, error) {
	var result loadResult
	times := newLatencies()
	q := newQuota(end, l.rate)
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	p, err := c.NewProducer(client.ProducerConfig{
		Topic: l.topic, Acks: l.acks, Codec: l.shape.codec, BatchBytes: max(1, l.shape.recordSize*l.shape.records),
		MaxInFlight: l.producers * l.inFlight, Partitioning: client.PartitionAsGiven,
		OnBatch: func(_ client.Ack, err error) {
			if err != nil {
				fail(err)
				return
			}
			atomic.AddInt64(&result.Batches, 1)
		},
	})
	if err != nil {
		return result, err
	}
	var sample sync.Mutex // one record in a batch's worth is timed
	timed := 0
	var group errgroup.Group
	for i := range l.producers {
		group.Go(func() error {
			partition := int32(i) % l.partitions
			value := make([]byte, l.shape.recordSize)
			for j := range value {
				value[j] = byte(rand.Uint32())
			}
			for {
				due, ok := q.take(running, 1, int64(len(value)))
				if !ok {
					return nil
				}
				sample.Lock()
				timed++
				measure := timed%l.shape.records == 0
				sample.Unlock()
				err := p.Produce(running, client.Record{Partition: partition, Value: value}, func(_ client.Ack, err error) {
					if err != nil {
						return
					}
					atomic.AddInt64(&result.Records, 1)
					atomic.AddInt64(&result.Bytes, int64(len(value)))
					if measure {
						times.add(time.Since(due))
					}
				})
				if err != nil {
					return err
				}
				partition = (partition + int32(l.producers)) % l.partitions
			}
		})
	}
	err = group.Wait()
	closing, stop := outlive(ctx)
	defer stop()
	err = errors.Join(err, p.Close(closing))
	result.conclude(time.Since(q.began), times)
	if cause := context.Cause(running); ctx.Err() == nil && cause != nil {
		return result, cause
	}
	if ctx.Err() != nil {
		return result, nil
	}
	return result, err
}
