package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/varvelog/varve/client"
)

const (
	topic     = "steady"
	producers = 4
)

// load is producers at a steady pace and a follower.
type load struct {
	ledger *ledger
	stop   chan struct{}
	all    sync.WaitGroup
	cancel context.CancelFunc // of the follower

	mu   sync.Mutex
	seen int64 // by the follower
	err  error // what ended the load, or the follower, too early
}

// startLoad starts it. Each producer is a client of its own that knows the balancer only.
func startLoad(url string, o options, l *ledger) (*load, error) {
	w := &load{ledger: l, stop: make(chan struct{})}
	for i := range producers {
		c, err := client.New(client.Config{Servers: []string{url}})
		if err != nil {
			return nil, err
		}
		p, err := c.NewProducer(client.ProducerConfig{Topic: topic, OnBatch: l.batch, Partitioning: client.PartitionAsGiven})
		if err != nil {
			return nil, err
		}
		w.all.Go(func() {
			w.fail(w.produce(p, i, o))
			w.fail(c.Close())
		})
	}
	return w, nil
}

func (w *load) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// produce sends records at a steady pace, however long their acks take.
func (w *load) produce(p *client.Producer, number int, o options) error {
	tick := time.NewTicker(time.Second * producers / time.Duration(o.records))
	defer tick.Stop()
	for {
		select {
		case <-w.stop:
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			return p.Close(ctx)
		case <-tick.C:
		}
		partition := rand.Int32N(int32(o.partitions))
		id := w.ledger.send(number, partition)
		value := make([]byte, max(o.size, 8))
		binary.BigEndian.PutUint64(value, uint64(id))
		sent := time.Now()
		err := p.Produce(context.Background(), client.Record{Partition: partition, Value: value}, func(_ client.Ack, err error) {
			w.ledger.end(id, time.Since(sent), err)
		})
		if err != nil {
			w.ledger.end(id, time.Since(sent), err)
		}
	}
}

// follow reads everything as it comes.
func (w *load) follow(url string) error {
	c, err := client.New(client.Config{Servers: []string{url}})
	if err != nil {
		return err
	}
	consumer, err := c.NewConsumer(client.ConsumerConfig{Topic: topic})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	next := make(map[int32]int64)
	w.all.Go(func() {
		defer c.Close()
		for record, err := range consumer.Records(ctx) {
			if ctx.Err() != nil {
				return
			}
			if err == nil && record.Offset != next[record.Partition] {
				err = fmt.Errorf("the follower got offset %d of partition %d after %d", record.Offset, record.Partition, next[record.Partition]-1)
			}
			if err != nil {
				w.fail(err)
				return
			}
			next[record.Partition]++
			w.mu.Lock()
			w.seen++
			w.mu.Unlock()
		}
	})
	return nil
}

// state is how many records the follower saw, and what went wrong.
func (w *load) state() (seen int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen, w.err
}

// halt ends the producers, with all acks, and waits until the follower has seen as many records as were acked.
func (w *load) halt() error {
	close(w.stop)
	const followerPatience = 30 * time.Second
	deadline := time.Now().Add(followerPatience)
	for {
		acked, underway := w.ledger.totals()
		seen, err := w.state()
		switch {
		case err == nil && underway == 0 && seen < acked && time.Now().Before(deadline), err == nil && underway > 0:
			time.Sleep(checkEvery)
			continue
		case err == nil && seen != acked:
			err = fmt.Errorf("%d records were acked, the follower saw %d", acked, seen)
		}
		w.cancel()
		w.all.Wait()
		return err
	}
}

// count reads the whole topic and counts each record.
func (l *ledger) count(ctx context.Context, url string) error {
	c, err := client.New(client.Config{Servers: []string{url}})
	if err != nil {
		return err
	}
	defer c.Close()
	consumer, err := c.NewConsumer(client.ConsumerConfig{Topic: topic, End: client.Latest()})
	if err != nil {
		return err
	}
	for record, err := range consumer.Records(ctx) {
		if err != nil {
			return err
		}
		if len(record.Value) < 8 {
			return fmt.Errorf("a record of %d bytes at offset %d of partition %d: nobody sent that", len(record.Value), record.Offset, record.Partition)
		}
		if err := l.found(int64(binary.BigEndian.Uint64(record.Value)), record.Partition); err != nil {
			return err
		}
	}
	return nil
}
