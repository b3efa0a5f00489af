package client_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/client/clienttest"
)

// faults stands before a server's appends and spoils the first so many of them.
type faults struct {
	mu     sync.Mutex
	random *rand.Rand
	left   int
	ghosts sync.WaitGroup
}

func (f *faults) draw() (kind int, delay time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delay = time.Duration(f.random.IntN(300)) * time.Microsecond
	if f.left == 0 {
		return -1, delay
	}
	f.left--
	return f.random.IntN(6), delay
}

func (f *faults) produce(_ *varvev1.ProduceRequest, apply func() (*varvev1.ProduceResponse, error)) (*varvev1.ProduceResponse, error) {
	kind, delay := f.draw()
	switch kind {
	case 0: // Refused.
		return nil, clienttest.Refusal(false)
	case 1: // Lost on the way there.
		return nil, clienttest.Refusal(true)
	case 2: // Lost on the way back.
		if _, err := apply(); err != nil {
			return nil, err
		}
		return nil, clienttest.Refusal(true)
	case 3: // Held up somewhere, to arrive when the client has given it up.
		f.ghosts.Go(func() {
			time.Sleep(2 * delay)
			_, _ = apply()
		})
		return nil, clienttest.Refusal(true)
	case 4: // Overtaken.
		time.Sleep(delay)
	}
	return apply()
}

// outcome is what a record's callback was told.
type outcome struct {
	partition int32
	offset    int64
	err       error
}

// Whatever happens on the way: a record with an ack is in the log once, at its offset; one with a definite
// error is not there; one with an unknown outcome at most once; and what was acked is in order.
func TestProducerKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := &faults{
			random: rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0)),
			left:   rapid.IntRange(0, 40).Draw(rt, "faults"),
		}
		server := clienttest.New()
		server.OnProduce = f.produce
		c := openFast(rt, server)
		const partitions = 2
		makeTopic(rt, c, partitions)
		p, err := c.NewProducer(client.ProducerConfig{
			Topic:           "t",
			Partitioning:    client.PartitionAsGiven,
			BatchBytes:      rapid.SampledFrom([]int{1, 150, 1 << 20}).Draw(rt, "batch bytes"),
			Linger:          rapid.SampledFrom([]time.Duration{client.NoLinger, 100 * time.Microsecond}).Draw(rt, "linger"),
			DeliveryTimeout: rapid.SampledFrom([]time.Duration{time.Minute, 3 * time.Millisecond}).Draw(rt, "delivery timeout"),
			MaxInFlight:     rapid.IntRange(1, 12).Draw(rt, "in flight"),
		})
		if err != nil {
			rt.Fatal(err)
		}
		outcomes := make([]outcome, rapid.IntRange(1, 80).Draw(rt, "records"))
		var mu sync.Mutex
		for i := range outcomes {
			rec := client.Record{Partition: int32(i % partitions), Value: strconv.AppendInt(nil, int64(i), 10)}
			if err := p.Produce(context.Background(), rec, func(a client.Ack, err error) {
				mu.Lock()
				defer mu.Unlock()
				outcomes[i] = outcome{a.Partition, a.BaseOffset, err}
			}); err != nil {
				rt.Fatal(err)
			}
		}
		if err := p.Close(context.Background()); err != nil {
			rt.Fatal(err)
		}
		f.ghosts.Wait()
		checkOutcomes(rt, c, outcomes)
	})
}

func openFast(t rapid.TB, server *clienttest.Server) *client.Client {
	c, err := client.New(client.Config{Transport: server.Transport()})
	if err != nil {
		t.Fatal(err)
	}
	client.SetFirstPause(c, 100*time.Microsecond)
	return c
}

func makeTopic(t rapid.TB, c *client.Client, partitions int32) {
	if _, _, err := c.CreateTopic(context.Background(), "t", client.CreateTopicOptions{Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
}

func collect(t rapid.TB, c *client.Client, cfg client.ConsumerConfig) []client.Record {
	k, err := c.NewConsumer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var out []client.Record
	for rec, err := range k.Records(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rec)
	}
	return out
}

func checkOutcomes(t rapid.TB, c *client.Client, outcomes []outcome) {
	type place struct {
		partition int32
		offset    int64
	}
	found := make(map[int]place)
	for _, rec := range collect(t, c, client.ConsumerConfig{Topic: "t", End: client.Latest()}) {
		i, err := strconv.Atoi(string(rec.Value))
		if err != nil {
			t.Fatal(err)
		}
		if before, twice := found[i]; twice {
			t.Fatalf("record %d is at %v and at %d:%d", i, before, rec.Partition, rec.Offset)
		}
		found[i] = place{rec.Partition, rec.Offset}
	}
	last := make(map[int32]int64)
	for i, o := range outcomes {
		at, there := found[i]
		switch {
		case o.err == nil && (!there || at != place{o.partition, o.offset}):
			t.Fatalf("record %d was acked at %d:%d, and is at %v (%v)", i, o.partition, o.offset, at, there)
		case o.err == nil && o.offset < last[o.partition]:
			t.Fatalf("record %d, at %d:%d, is out of order", i, o.partition, o.offset)
		case o.err == nil:
			last[o.partition] = o.offset
		case !errors.Is(o.err, client.ErrUnknownOutcome) && there:
			t.Fatalf("record %d failed for certain (%v), and is at %v", i, o.err, at)
		}
	}
}

// fill appends random batches to a topic and returns its records in order of append.
func fill(t *rapid.T, c *client.Client, partitions int32) []client.Record {
	var all []client.Record
	for range rapid.IntRange(0, 30).Draw(t, "batches") {
		n := rapid.Int32Range(0, partitions-1).Draw(t, "partition")
		var recs []client.Record
		for _, at := range rapid.SliceOfN(rapid.Int64Range(0, 20), 1, 5).Draw(t, "times") {
			recs = append(recs, client.Record{Partition: n, Timestamp: time.UnixMilli(at)})
		}
		ack, err := c.Append(context.Background(), "t", n, recs, client.AppendOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range recs {
			recs[i].Offset = ack.BaseOffset + int64(i)
		}
		all = append(all, recs...)
	}
	return all
}

// breakStreams makes a server's streams break now and then, before and within messages.
func breakStreams(t *rapid.T, server *clienttest.Server) {
	random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	var mu sync.Mutex
	server.OnConsume = func(*varvev1.ConsumeResponse) error {
		mu.Lock()
		defer mu.Unlock()
		if random.IntN(3) == 0 {
			return clienttest.Refusal(false)
		}
		return nil
	}
}

// A consumer sees each record once, however often its connection breaks, in either order.
func TestConsumerSeesEachRecordOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		server := clienttest.New()
		c := openFast(rt, server)
		partitions := rapid.Int32Range(1, 4).Draw(rt, "partitions")
		makeTopic(rt, c, partitions)
		all := fill(rt, c, partitions)
		breakStreams(rt, server)
		cfg := client.ConsumerConfig{Topic: "t", End: client.Latest(), MaxBytes: rapid.SampledFrom([]int{1, 200, 0}).Draw(rt, "max bytes")}
		if rapid.Bool().Draw(rt, "between") {
			cfg.Between = &client.TimeRange{Start: time.UnixMilli(5), End: time.UnixMilli(15)}
		}
		want := slices.DeleteFunc(slices.Clone(all), func(r client.Record) bool {
			at := r.Timestamp.UnixMilli()
			return cfg.Between != nil && (at < 5 || at >= 15)
		})

		got := collect(rt, c, cfg)
		byPartition := func(a, b client.Record) int { return cmp.Compare(a.Partition, b.Partition) }
		slices.SortStableFunc(got, byPartition)
		wantSorted := slices.Clone(want)
		slices.SortStableFunc(wantSorted, byPartition)
		if a, b := fmt.Sprint(lines(got)), fmt.Sprint(lines(wantSorted)); a != b {
			rt.Fatalf("as they come:\n got %s\nwant %s", a, b)
		}

		cfg.Order = client.ByTimestamp
		got = collect(rt, c, cfg)
		if a, b := fmt.Sprint(lines(got)), fmt.Sprint(lines(mergeReference(want))); a != b {
			rt.Fatalf("merged:\n got %s\nwant %s", a, b)
		}
	})
}

// mergeReference takes, again and again, the oldest of the first records that are left in each partition.
func mergeReference(recs []client.Record) []client.Record {
	left := slices.Clone(recs)
	var out []client.Record
	for len(left) > 0 {
		best := -1
		seen := make(map[int32]bool)
		for i, r := range left {
			if seen[r.Partition] {
				continue
			}
			seen[r.Partition] = true
			if best < 0 || cmp.Or(r.Timestamp.Compare(left[best].Timestamp), cmp.Compare(r.Partition, left[best].Partition)) < 0 {
				best = i
			}
		}
		out = append(out, left[best])
		left = slices.Delete(left, best, best+1)
	}
	return out
}
