package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/client/clienttest"
)

// newClient stands for client.New(client.Config{Servers: []string{"http://127.0.0.1:7480"}}): the examples
// run against a server in memory.
func newClient() *client.Client {
	c, err := client.New(client.Config{Transport: clienttest.New().Transport()})
	if err != nil {
		log.Fatal(err)
	}
	return c
}

func day(n int) time.Time { return time.Date(2026, 3, n, 0, 0, 0, 0, time.UTC) }

func Example() {
	ctx := context.Background()
	c := newClient()
	defer c.Close()

	p, err := c.NewProducer(client.ProducerConfig{Topic: "quakes"})
	if err != nil {
		log.Fatal(err)
	}
	for n, place := range []string{"Alaska", "Chile", "Fiji"} {
		rec := client.Record{Key: []byte(place), Value: fmt.Appendf(nil, "magnitude %d", n+3), Timestamp: day(n + 1)}
		if err := p.Produce(ctx, rec, nil); err != nil {
			log.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		log.Fatal(err)
	}

	k, err := c.NewConsumer(client.ConsumerConfig{Topic: "quakes", Start: client.AtTime(day(2)), End: client.Latest()})
	if err != nil {
		log.Fatal(err)
	}
	for rec, err := range k.Records(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d %s %s: %s\n", rec.Offset, rec.Timestamp.UTC().Format(time.DateOnly), rec.Key, rec.Value)
	}
	// Output:
	// 1 2026-03-02 Chile: magnitude 4
	// 2 2026-03-03 Fiji: magnitude 5
}

// Callbacks tell what became of each record.
func ExampleProducer_Produce() {
	ctx := context.Background()
	c := newClient()
	defer c.Close()
	p, err := c.NewProducer(client.ProducerConfig{Topic: "orders", Codec: client.CodecZstd})
	if err != nil {
		log.Fatal(err)
	}
	for _, order := range []string{"tea", "milk"} {
		err := p.Produce(ctx, client.Record{Value: []byte(order)}, func(ack client.Ack, err error) {
			switch {
			case errors.Is(err, client.ErrUnknownOutcome):
				fmt.Println(order, "may have been ordered")
			case err != nil:
				fmt.Println(order, "was not ordered:", err)
			default:
				fmt.Printf("%s is at %s/%d, offset %d\n", order, ack.Topic, ack.Partition, ack.BaseOffset)
			}
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// tea is at orders/0, offset 0
	// milk is at orders/0, offset 1
}

// Two writers agree on who was first.
func ExampleClient_Append() {
	ctx := context.Background()
	c := newClient()
	defer c.Close()
	next := int64(0)
	for _, writer := range []string{"first", "second"} {
		ack, err := c.Append(ctx, "ledger", 0, []client.Record{{Value: []byte(writer)}}, client.AppendOptions{ExpectedOffset: &next})
		var failure *client.Error
		if errors.Is(err, client.ErrOffsetMismatch) && errors.As(err, &failure) {
			fmt.Printf("%s: too late, the next offset is %d\n", writer, failure.ActualOffset)
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: appended at %d\n", writer, ack.BaseOffset)
	}
	// Output:
	// first: appended at 0
	// second: too late, the next offset is 1
}

// What was the offset at that time?
func ExampleClient_ListOffsets() {
	ctx := context.Background()
	c := newClient()
	defer c.Close()
	recs := []client.Record{{Timestamp: day(1)}, {Timestamp: day(2)}, {Timestamp: day(5)}}
	if _, err := c.Append(ctx, "log", 0, recs, client.AppendOptions{}); err != nil {
		log.Fatal(err)
	}
	for _, n := range []int{2, 3, 6} {
		answer, err := c.ListOffsets(ctx, "log", client.OffsetAtOrAfter(day(n)))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(day(n).Format(time.DateOnly), answer[0].Found, answer[0].Offset)
	}
	// Output:
	// 2026-03-02 true 1
	// 2026-03-03 true 2
	// 2026-03-06 false -1
}

// Partitions are merged by timestamp, for reading a topic as one story.
func ExampleConsumer_Records_merged() {
	ctx := context.Background()
	c := newClient()
	defer c.Close()
	if _, _, err := c.CreateTopic(ctx, "two", client.CreateTopicOptions{Partitions: 2}); err != nil {
		log.Fatal(err)
	}
	for partition, days := range [][]int{{1, 4}, {2, 3}} {
		for _, n := range days {
			if _, err := c.Append(ctx, "two", int32(partition), []client.Record{{Timestamp: day(n)}}, client.AppendOptions{}); err != nil {
				log.Fatal(err)
			}
		}
	}
	k, err := c.NewConsumer(client.ConsumerConfig{Topic: "two", End: client.Latest(), Order: client.ByTimestamp})
	if err != nil {
		log.Fatal(err)
	}
	for rec, err := range k.Records(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(rec.Timestamp.UTC().Format(time.DateOnly), rec.Partition)
	}
	// Output:
	// 2026-03-01 0
	// 2026-03-02 1
	// 2026-03-03 1
	// 2026-03-04 0
}
