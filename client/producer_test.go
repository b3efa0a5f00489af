package client_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/client/clienttest"
	"github.com/varvelog/varve/segments/batch"
)

func TestProduceAndRead(t *testing.T) {
	for _, codec := range []client.Codec{client.CodecNone, client.CodecGzip, client.CodecSnappy, client.CodecLZ4, client.CodecZstd} {
		t.Run(codec.String(), func(t *testing.T) {
			c := open(t, clienttest.New())
			createTopic(t, c, "t", 1)
			p := producer(t, c, client.ProducerConfig{Topic: "t", Codec: codec})
			acks, err := p.ProduceSync(t.Context(),
				client.Record{Key: []byte("k"), Value: []byte("v"), Timestamp: ms(5)},
				client.Record{Value: []byte{}, Timestamp: ms(6), Headers: []client.Header{{Key: "h", Value: []byte("1")}, {Key: "h"}}},
			)
			if err != nil || acks[1].BaseOffset != 1 || acks[1].Records != 1 || acks[0].Acks != client.AcksCommitted {
				t.Fatalf("acks %+v: %v", acks, err)
			}
			got := readAll(t, c, client.ConsumerConfig{Topic: "t"})
			wantLines(t, got, "0:0 5 k=v", "0:1 6 =")
			if got[1].Key != nil || got[1].Value == nil || len(got[1].Headers) != 2 || got[1].Headers[1].Value != nil {
				t.Errorf("null and empty were confused: %+v", got[1])
			}
		})
	}
}

// Callers may change their bytes as soon as Produce returns.
func TestProduceCopies(t *testing.T) {
	c := open(t, clienttest.New())
	createTopic(t, c, "t", 1)
	p := producer(t, c, client.ProducerConfig{Topic: "t"})
	value := []byte("before")
	if err := p.Produce(t.Context(), client.Record{Value: value, Timestamp: ms(1)}, nil); err != nil {
		t.Fatal(err)
	}
	copy(value, "after!")
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantLines(t, readAll(t, c, client.ConsumerConfig{Topic: "t"}), "0:0 1 =before")
}

func TestCloseFlushes(t *testing.T) {
	c := open(t, clienttest.New())
	createTopic(t, c, "t", 3)
	p, err := c.NewProducer(client.ProducerConfig{Topic: "t", Linger: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	var acked atomic.Int32
	for range 100 {
		if err := p.Produce(t.Context(), client.Record{}, func(_ client.Ack, err error) {
			if err == nil {
				acked.Add(1)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil || acked.Load() != 100 {
		t.Errorf("closed with %d acks: %v", acked.Load(), err)
	}
	if err := p.Produce(t.Context(), client.Record{}, nil); !errors.Is(err, client.ErrClosed) {
		t.Errorf("want ErrClosed, got %v", err)
	}
	if got := readAll(t, c, client.ConsumerConfig{Topic: "t"}); len(got) != 100 {
		t.Errorf("%d records in the log", len(got))
	}
}

// A server that never answers must not keep a producer from closing.
func TestCloseGivesUpWithItsContext(t *testing.T) {
	server := clienttest.New()
	hang, entered := make(chan struct{}), make(chan struct{})
	server.OnProduce = func(*varvev1.ProduceRequest, func() (*varvev1.ProduceResponse, error)) (*varvev1.ProduceResponse, error) {
		close(entered)
		<-hang
		return nil, clienttest.Refusal(true)
	}
	c := open(t, server)
	createTopic(t, c, "t", 1)
	p, err := c.NewProducer(client.ProducerConfig{Topic: "t", MaxInFlight: 1, Linger: client.NoLinger, MaxBufferedBytes: 100})
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 2)
	done := func(_ client.Ack, err error) { errs <- err }
	if err := p.Produce(t.Context(), client.Record{Value: []byte("sent")}, done); err != nil {
		t.Fatal(err)
	}
	<-entered
	if err := p.Produce(t.Context(), client.Record{Value: []byte("not sent")}, done); err != nil {
		t.Fatal(err)
	}
	blocked := make(chan error, 1)
	go func() { blocked <- p.Produce(context.Background(), client.Record{Value: make([]byte, 60)}, nil) }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	closed := make(chan error, 1)
	go func() { closed <- p.Close(ctx) }()
	if err := <-blocked; !errors.Is(err, client.ErrClosed) {
		t.Errorf("blocked Produce: want ErrClosed, got %v", err)
	}
	close(hang) // In process, a call does not end with its context.
	if err := <-closed; !errors.Is(err, context.Canceled) {
		t.Errorf("Close: want Canceled, got %v", err)
	}
	if err := <-errs; !errors.Is(err, client.ErrUnknownOutcome) {
		t.Errorf("sent record: want ErrUnknownOutcome, got %v", err)
	}
	if err := <-errs; !errors.Is(err, client.ErrClosed) || errors.Is(err, client.ErrUnknownOutcome) {
		t.Errorf("record not sent: want ErrClosed, got %v", err)
	}
}

func TestMemoryBoundHolds(t *testing.T) {
	const bound = 10_000
	server := clienttest.New()
	c := open(t, server)
	createTopic(t, c, "t", 4)
	var most atomic.Int64
	var p *client.Producer
	server.OnProduce = func(_ *varvev1.ProduceRequest, apply func() (*varvev1.ProduceResponse, error)) (*varvev1.ProduceResponse, error) {
		most.Store(max(most.Load(), int64(p.BufferedBytes())))
		return apply()
	}
	p = producer(t, c, client.ProducerConfig{Topic: "t", MaxBufferedBytes: bound, Linger: time.Hour, MaxInFlight: 1})
	for range 500 {
		if err := p.Produce(t.Context(), client.Record{Value: make([]byte, 500)}, nil); err != nil {
			t.Fatal(err)
		}
		most.Store(max(most.Load(), int64(p.BufferedBytes())))
	}
	if most.Load() > bound || most.Load() < bound/2 {
		t.Errorf("%d bytes were buffered, the bound is %d", most.Load(), bound)
	}
	if err := p.Produce(t.Context(), client.Record{Value: make([]byte, bound)}, nil); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("a record that never fits: want ErrInvalid, got %v", err)
	}
	if err := p.Flush(t.Context()); err != nil || p.BufferedBytes() != 0 {
		t.Errorf("%d bytes left after Flush: %v", p.BufferedBytes(), err)
	}
}

// Records by key follow murmur2, records without a key fill one batch before the next partition's.
func TestPartitioning(t *testing.T) {
	c := open(t, clienttest.New())
	createTopic(t, c, "t", 5)
	p := producer(t, c, client.ProducerConfig{Topic: "t", Linger: time.Hour})
	for i := range 50 {
		key := fmt.Appendf(nil, "key-%d", i)
		if err := p.Produce(t.Context(), client.Record{Key: key}, func(a client.Ack, err error) {
			if want := batch.PartitionForKey(key, 5); err != nil || a.Partition != want {
				t.Errorf("%s went to %d, want %d: %v", key, a.Partition, want, err)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	used := make(map[int32]int)
	for range 5 {
		for range 10 {
			if err := p.Produce(t.Context(), client.Record{}, func(a client.Ack, err error) { used[a.Partition]++ }); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range int32(5) {
		if used[i] != 10 {
			t.Errorf("records without a key: %v, want 10 in each partition", used)
			break
		}
	}
}

func TestPartitionAsGivenFindsNewPartitions(t *testing.T) {
	c := open(t, clienttest.New())
	createTopic(t, c, "t", 1)
	p := producer(t, c, client.ProducerConfig{Topic: "t", Partitioning: client.PartitionAsGiven})
	if _, err := p.ProduceSync(t.Context(), client.Record{Partition: 1}); !errors.Is(err, client.ErrPartitionNotFound) {
		t.Fatalf("want ErrPartitionNotFound, got %v", err)
	}
	if _, err := c.AlterTopic(t.Context(), "t", client.AlterTopicOptions{Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	acks, err := p.ProduceSync(t.Context(), client.Record{Partition: 1})
	if err != nil || acks[0].Partition != 1 {
		t.Errorf("acks %+v: %v", acks, err)
	}
}

func TestFirstProduceMakesTheTopic(t *testing.T) {
	server := clienttest.New()
	server.AutoCreate = 4
	c := open(t, server)
	p := producer(t, c, client.ProducerConfig{Topic: "new"})
	for i := range 20 {
		key := fmt.Appendf(nil, "%d", i)
		acks, err := p.ProduceSync(t.Context(), client.Record{Key: key, Timestamp: ms(int64(i))})
		if err != nil || acks[0].Partition != batch.PartitionForKey(key, 4) {
			t.Fatalf("record %d: %+v, %v", i, acks, err)
		}
	}
	server.AutoCreate = 0
	if _, err := p.ProduceSync(t.Context(), client.Record{Topic: "other"}); !errors.Is(err, client.ErrTopicNotFound) {
		t.Errorf("want ErrTopicNotFound, got %v", err)
	}
}

func TestDeletedTopicIsAskedForAgain(t *testing.T) {
	server := clienttest.New()
	server.AutoCreate = 0
	c := open(t, server)
	createTopic(t, c, "t", 1)
	p := producer(t, c, client.ProducerConfig{Topic: "t"})
	if _, err := p.ProduceSync(t.Context(), client.Record{}); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteTopic(t.Context(), "t", false); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ProduceSync(t.Context(), client.Record{}); !errors.Is(err, client.ErrTopicNotFound) {
		t.Fatalf("want ErrTopicNotFound, got %v", err)
	}
	createTopic(t, c, "t", 2)
	acks, err := p.ProduceSync(t.Context(), client.Record{})
	if err != nil || acks[0].BaseOffset != 0 {
		t.Errorf("after the topic was made again: %+v, %v", acks, err)
	}
}

func TestBufferedAcks(t *testing.T) {
	c := open(t, clienttest.New())
	createTopic(t, c, "t", 1)
	p := producer(t, c, client.ProducerConfig{Topic: "t", Acks: client.AcksBuffered})
	acks, err := p.ProduceSync(t.Context(), client.Record{}, client.Record{})
	if err != nil || acks[1].BaseOffset != -1 || acks[1].Acks != client.AcksBuffered {
		t.Errorf("acks %+v: %v", acks, err)
	}
}

// A batch that is refused fails alone; those that were sent after it get new sequences.
func TestRefusedBatchFailsAlone(t *testing.T) {
	server := clienttest.New()
	server.OnProduce = func(req *varvev1.ProduceRequest, apply func() (*varvev1.ProduceResponse, error)) (*varvev1.ProduceResponse, error) {
		for r, err := range batch.Records(req.GetRecordBatch(), batch.Limits{}) {
			if err == nil && string(r.Value) == "bad" {
				req.RecordBatch[len(req.RecordBatch)-1] ^= 1 // Our copy: the server finds a broken CRC.
			}
		}
		return apply()
	}
	c := open(t, server)
	createTopic(t, c, "t", 1)
	p := producer(t, c, client.ProducerConfig{Topic: "t", BatchBytes: 1}) // A record a batch.
	var wg sync.WaitGroup
	for i := range 30 {
		value := fmt.Appendf(nil, "%d", i)
		if i%7 == 3 {
			value = []byte("bad")
		}
		wg.Add(1)
		if err := p.Produce(t.Context(), client.Record{Value: value, Timestamp: ms(0)}, func(_ client.Ack, err error) {
			defer wg.Done()
			if bad := string(value) == "bad"; bad != errors.Is(err, client.ErrInvalid) || !bad && err != nil {
				t.Errorf("%s: %v", value, err)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	var want []string
	for i := range 30 {
		if i%7 != 3 {
			want = append(want, fmt.Sprintf("0:%d 0 =%d", len(want), i))
		}
	}
	wantLines(t, readAll(t, c, client.ConsumerConfig{Topic: "t"}), want...)
}

func TestForgottenProducerGoesOn(t *testing.T) {
	server := clienttest.New()
	c := open(t, server)
	createTopic(t, c, "t", 1)
	p := producer(t, c, client.ProducerConfig{Topic: "t"})
	for i := range 3 {
		if _, err := p.ProduceSync(t.Context(), client.Record{Timestamp: ms(int64(i))}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Append(t.Context(), "t", 0, []client.Record{{Timestamp: ms(int64(i))}}, client.AppendOptions{}); err != nil {
			t.Fatal(err)
		}
		server.ForgetProducers()
	}
	wantLines(t, readAll(t, c, client.ConsumerConfig{Topic: "t"}), "0:0 0 =", "0:1 0 =", "0:2 1 =", "0:3 1 =", "0:4 2 =", "0:5 2 =")
}

// An outcome that stays unknown is reported as such, and what comes later goes on under a new id.
func TestUnknownOutcomeAtTheDeliveryTimeout(t *testing.T) {
	server := clienttest.New()
	var failing atomic.Bool
	server.OnProduce = func(_ *varvev1.ProduceRequest, apply func() (*varvev1.ProduceResponse, error)) (*varvev1.ProduceResponse, error) {
		if !failing.Load() {
			return apply()
		}
		if _, err := apply(); err != nil {
			return nil, err
		}
		return nil, clienttest.Refusal(true)
	}
	c := open(t, server)
	createTopic(t, c, "t", 1)
	p := producer(t, c, client.ProducerConfig{Topic: "t", DeliveryTimeout: 50 * time.Millisecond})
	failing.Store(true)
	_, err := p.ProduceSync(t.Context(), client.Record{Timestamp: ms(0)})
	if !errors.Is(err, client.ErrUnknownOutcome) {
		t.Fatalf("want ErrUnknownOutcome, got %v", err)
	}
	failing.Store(false)
	if _, err := p.ProduceSync(t.Context(), client.Record{Timestamp: ms(1)}); err != nil {
		t.Fatal(err)
	}
	wantLines(t, readAll(t, c, client.ConsumerConfig{Topic: "t"}), "0:0 0 =", "0:1 1 =")
}

// Without a producer id nobody could recognise a batch that is sent again.
func TestWithoutIdempotence(t *testing.T) {
	for _, repeat := range []bool{false, true} {
		server := clienttest.New()
		calls := 0
		server.OnProduce = func(_ *varvev1.ProduceRequest, apply func() (*varvev1.ProduceResponse, error)) (*varvev1.ProduceResponse, error) {
			res, err := apply()
			if calls++; calls == 1 {
				return nil, clienttest.Refusal(true)
			}
			return res, err
		}
		c := open(t, server)
		createTopic(t, c, "t", 1)
		p := producer(t, c, client.ProducerConfig{Topic: "t", DisableIdempotence: true, RepeatUnknown: repeat})
		_, err := p.ProduceSync(t.Context(), client.Record{})
		if repeat && err != nil || !repeat && !errors.Is(err, client.ErrUnknownOutcome) {
			t.Errorf("repeat %v: %v", repeat, err)
		}
		want := 1
		if repeat {
			want = 2
		}
		if got := len(readAll(t, c, client.ConsumerConfig{Topic: "t"})); got != want {
			t.Errorf("repeat %v: %d records, want %d", repeat, got, want)
		}
	}
}

func TestConditionalAppend(t *testing.T) {
	server := clienttest.New()
	lose := true
	server.OnProduce = func(_ *varvev1.ProduceRequest, apply func() (*varvev1.ProduceResponse, error)) (*varvev1.ProduceResponse, error) {
		res, err := apply()
		if lose = !lose; err == nil && !lose {
			return nil, clienttest.Refusal(true) // Each success is answered at the second try.
		}
		return res, err
	}
	c := open(t, server)
	createTopic(t, c, "t", 1)
	one := []client.Record{{Timestamp: ms(7)}}
	for next := range int64(3) {
		ack, err := c.Append(t.Context(), "t", 0, one, client.AppendOptions{ExpectedOffset: &next})
		if err != nil || ack.BaseOffset != next || !ack.Duplicate {
			t.Fatalf("ack %+v: %v", ack, err)
		}
	}
	_, err := c.Append(t.Context(), "t", 0, one, client.AppendOptions{ExpectedOffset: ptr(int64(1))})
	var e *client.Error
	if !errors.Is(err, client.ErrOffsetMismatch) || !errors.As(err, &e) || e.ExpectedOffset != 1 || e.ActualOffset != 3 || e.UnknownOutcome {
		t.Fatalf("want a definite ErrOffsetMismatch with 1 and 3, got %v", err)
	}
	if _, err := c.Fence(t.Context(), "t", 0, "new", client.FenceOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append(t.Context(), "t", 0, one, client.AppendOptions{FencingToken: ptr("old")}); !errors.Is(err, client.ErrFenced) {
		t.Fatalf("want ErrFenced, got %v", err)
	}
	if _, err := c.Append(t.Context(), "t", 0, one, client.AppendOptions{FencingToken: ptr("new")}); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, c, client.ConsumerConfig{Topic: "t"}); len(got) != 4 {
		t.Errorf("%d records, want 4", len(got))
	}
}
