package client_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"pgregory.net/rapid"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/client/clienttest"
)

// mood is what a gateway of a fleet does to what it is asked.
type mood int

const (
	well     mood = iota
	draining      // Refuses: ask another one.
	fenced        // Its partitions were taken from it.
	held          // Waits for the partition's owner.
	cutOff        // Breaks the connection, before or after it did what it was asked.
)

// fleet is some gateways over one log, each in a mood that changes as calls come.
type fleet struct {
	mu     sync.Mutex
	random *rand.Rand
	among  []mood
	moods  []mood
	// trouble is how many more calls are spoilt.
	trouble  int
	gateways []*clienttest.Server
}

func newFleet(seed uint64, n int, among ...mood) *fleet {
	f := &fleet{random: rand.New(rand.NewPCG(seed, 0)), among: among, moods: make([]mood, n)}
	first := clienttest.New()
	for i := range n {
		g := first
		if i > 0 {
			g = first.Peer()
		}
		g.OnCall = func(_ context.Context, procedure string) error {
			if strings.HasSuffix(procedure, "/Produce") {
				return nil // OnProduce knows more.
			}
			return refusal(f.mood(i))
		}
		g.OnProduce = func(_ *varvev1.ProduceRequest, apply func() (*varvev1.ProduceResponse, error)) (*varvev1.ProduceResponse, error) {
			m := f.mood(i)
			if m == cutOff && f.coin() {
				if _, err := apply(); err != nil {
					return nil, err
				}
			}
			if err := refusal(m); err != nil {
				return nil, err
			}
			return apply()
		}
		g.OnConsume = func(*varvev1.ConsumeResponse) error { return refusal(f.mood(i)) }
		f.gateways = append(f.gateways, g)
	}
	return f
}

// mood is that of gateway i for its next call.
func (f *fleet) mood(i int) mood {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trouble == 0 {
		return well
	}
	if f.random.IntN(4) == 0 {
		f.moods[i] = f.among[f.random.IntN(len(f.among))]
	}
	if f.moods[i] != well {
		f.trouble--
	}
	return f.moods[i]
}

func (f *fleet) coin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.random.IntN(2) == 0
}

func refusal(m mood) error {
	switch m {
	case draining:
		return clienttest.Failure(connect.CodeUnavailable, &varvev1.ErrorInfo{Reason: "DRAINING", Retriable: true})
	case fenced:
		return clienttest.Failure(connect.CodeAborted, &varvev1.ErrorInfo{Reason: "GATEWAY_FENCED", Retriable: true})
	case held:
		return clienttest.Failure(connect.CodeUnavailable, &varvev1.ErrorInfo{Reason: "HELD_ELSEWHERE", Retriable: true})
	case cutOff:
		return connect.NewError(connect.CodeUnavailable, "cut off") // No details: nothing is known.
	}
	return nil
}

// open returns a client of the whole fleet, with pauses that fit a test.
func (f *fleet) open(t interface {
	rapid.TB
	Cleanup(func())
}, cfg client.Config,
) *client.Client {
	var transports []connect.Transport
	for _, g := range f.gateways {
		transports = append(transports, g.Transport())
	}
	c := client.NewOver(cfg, transports...)
	client.SetFirstPause(c, 50*time.Microsecond)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Whatever its servers do, one after the other: no record of an idempotent producer fails, each is there once, in
// order, and the sequence of one id goes on from server to server.
func TestProducerGoesOnWithAnotherServer(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFleet(rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(2, 3).Draw(rt, "servers"),
			well, draining, fenced, held, cutOff)
		c := f.open(rt, client.Config{})
		makeTopic(rt, c, 2)
		f.trouble = rapid.IntRange(0, 60).Draw(rt, "trouble")
		outcomes := produceAll(rt, c, rapid.IntRange(1, 80).Draw(rt, "records"), client.ProducerConfig{
			BatchBytes:  rapid.SampledFrom([]int{1, 150, 1 << 20}).Draw(rt, "batch bytes"),
			Linger:      client.NoLinger,
			MaxInFlight: rapid.IntRange(1, 12).Draw(rt, "in flight"),
		})
		for i, o := range outcomes {
			if o.err != nil {
				rt.Fatalf("record %d failed: %v", i, o.err)
			}
		}
		checkOutcomes(rt, c, outcomes)
	})
}

// A plain producer moves on too, from servers that certainly did nothing, and sends nothing twice.
func TestPlainProducerGoesOnWithAnotherServer(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		among := []mood{well, draining, fenced, held}
		doubtful := rapid.Bool().Draw(rt, "doubtful")
		if doubtful {
			among = append(among, cutOff)
		}
		f := newFleet(rapid.Uint64().Draw(rt, "seed"), 3, among...)
		c := f.open(rt, client.Config{})
		makeTopic(rt, c, 2)
		f.trouble = rapid.IntRange(0, 60).Draw(rt, "trouble")
		outcomes := produceAll(rt, c, rapid.IntRange(1, 60).Draw(rt, "records"), client.ProducerConfig{
			BatchBytes: 1, Linger: client.NoLinger, DisableIdempotence: true,
		})
		for i, o := range outcomes {
			if o.err != nil && !(doubtful && errors.Is(o.err, client.ErrUnknownOutcome)) {
				rt.Fatalf("record %d failed: %v", i, o.err)
			}
		}
		checkOutcomes(rt, c, outcomes)
	})
}

func produceAll(t rapid.TB, c *client.Client, n int, cfg client.ProducerConfig) []outcome {
	cfg.Topic, cfg.Partitioning = "t", client.PartitionAsGiven
	p, err := c.NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	outcomes := make([]outcome, n)
	var mu sync.Mutex
	for i := range outcomes {
		rec := client.Record{Partition: int32(i % 2), Value: strconv.AppendInt(nil, int64(i), 10)}
		if err := p.Produce(context.Background(), rec, func(a client.Ack, err error) {
			mu.Lock()
			defer mu.Unlock()
			outcomes[i] = outcome{a.Partition, a.BaseOffset, err}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	return outcomes
}

// A consumer reads each record once from servers that fail and lag; its high watermark never falls, even though one of
// them forgets what it was told.
func TestWatermarkNeverFalls(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFleet(rapid.Uint64().Draw(rt, "seed"), 3, well, draining, fenced, held, cutOff)
		c := f.open(rt, client.Config{})
		partitions := rapid.Int32Range(1, 3).Draw(rt, "partitions")
		makeTopic(rt, c, partitions)
		all := fill(rt, c, partitions)
		for i, g := range f.gateways[1:] {
			g.Lag = func() int64 { f.mu.Lock(); defer f.mu.Unlock(); return f.random.Int64N(40) }
			g.IgnoreSeen = i == 1
		}
		f.trouble = rapid.IntRange(0, 40).Draw(rt, "trouble")
		k, err := c.NewConsumer(client.ConsumerConfig{
			Topic: "t", End: rapid.SampledFrom([]client.Place{client.Latest(), client.AtTime(ms(1 << 40))}).Draw(rt, "end"),
			Linearizable: true, MaxBytes: rapid.SampledFrom([]int{1, 200}).Draw(rt, "max bytes"),
		})
		if err != nil {
			rt.Fatal(err)
		}
		next, seen := make(map[int32]int64), make(map[int32]int64)
		for b, err := range k.Batches(context.Background()) {
			switch {
			case err != nil:
				rt.Fatal(err)
			case b.HighWatermark < seen[b.Partition]:
				rt.Fatalf("partition %d: the high watermark fell from %d to %d", b.Partition, seen[b.Partition], b.HighWatermark)
			case b.StartOffset != next[b.Partition]:
				rt.Fatalf("partition %d: goes on at %d, not at %d", b.Partition, b.StartOffset, next[b.Partition])
			}
			seen[b.Partition], next[b.Partition] = b.HighWatermark, b.NextOffset
		}
		want := make(map[int32]int64)
		for _, r := range all {
			want[r.Partition] = r.Offset + 1
		}
		for p, n := range want {
			if next[p] != n {
				rt.Fatalf("partition %d: read up to %d, want %d: nothing that was acknowledged may be missing", p, next[p], n)
			}
		}
	})
}

// A server that takes calls and never answers does not take the whole time of a call.
func TestSilentServer(t *testing.T) {
	f := newFleet(1, 2)
	createTopic(t, open(t, f.gateways[0]), "t", 1)
	f.gateways[0].OnCall = func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for range 10 { // The first one is drawn.
		c := f.open(t, client.Config{RequestTimeout: 200 * time.Millisecond})
		if _, err := c.ListOffsets(t.Context(), "t", client.LatestOffset()); err != nil {
			t.Fatal(err)
		}
	}
}

// Clients spread over the servers there are, and find one that comes later.
func TestClientsFindNewServers(t *testing.T) {
	f := newFleet(1, 3)
	var late atomic.Bool
	late.Store(true)
	var calls [3]atomic.Int64
	for i, g := range f.gateways {
		g.OnCall = func(_ context.Context, procedure string) error {
			if i == 2 && late.Load() {
				return refusal(draining)
			}
			if strings.HasSuffix(procedure, "/DescribeTopic") {
				calls[i].Add(1)
			}
			return nil
		}
	}
	createTopic(t, open(t, f.gateways[0]), "t", 1)
	var clients []*client.Client
	for range 40 {
		clients = append(clients, f.open(t, client.Config{}))
	}
	round := func() {
		for _, c := range clients {
			if _, err := c.DescribeTopic(t.Context(), "t"); err != nil {
				t.Fatal(err)
			}
		}
	}
	round()
	if a, b := calls[0].Load(), calls[1].Load(); a < 5 || b < 5 || a+b != 40 {
		t.Errorf("of 40 clients %d and %d use the servers there are", a, b)
	}
	late.Store(false)
	for deadline := time.Now().Add(20 * time.Second); calls[2].Load() < 5; round() {
		if time.Now().After(deadline) {
			t.Fatalf("the new server got %d calls", calls[2].Load())
		}
	}
}

// Behind a load balancer there is one address: after a gateway that drains a new connection leads to another one.
func TestDrainingServerLosesItsConnections(t *testing.T) {
	first := clienttest.New()
	createTopic(t, open(t, first), "t", 1)
	second := first.Peer()
	first.OnCall = func(context.Context, string) error {
		return clienttest.Failure(connect.CodeUnavailable, &varvev1.ErrorInfo{Reason: "DRAINING", Retriable: true})
	}
	handlers := []http.Handler{first.Handler(), second.Handler()}
	type numberKey struct{}
	var connections atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers[min(r.Context().Value(numberKey{}).(int64), 1)].ServeHTTP(w, r)
	}))
	s.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, numberKey{}, connections.Add(1)-1)
	}
	s.Start()
	t.Cleanup(s.Close)
	if _, err := openHTTP(t, s.URL).DescribeTopic(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
}

// However many race for a token, and however many answers get lost: one wins, and who is told so has it.
func TestOneFenceWins(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFleet(rapid.Uint64().Draw(rt, "seed"), 3)
		c := f.open(rt, client.Config{})
		makeTopic(rt, c, 1)
		for _, g := range f.gateways {
			g.OnFence = func(_ *varvev1.FenceRequest, apply func() (*varvev1.FenceResponse, error)) (*varvev1.FenceResponse, error) {
				if f.coin() {
					return apply()
				}
				if f.coin() {
					if _, err := apply(); err != nil {
						return nil, err
					}
				}
				return nil, clienttest.Refusal(true)
			}
		}
		none := ""
		won := make([]error, rapid.IntRange(2, 6).Draw(rt, "racers"))
		var racers sync.WaitGroup
		for i := range won {
			racers.Go(func() {
				_, won[i] = c.Fence(context.Background(), "t", 0, strconv.Itoa(i), client.FenceOptions{CurrentToken: &none})
			})
		}
		racers.Wait()
		d, err := c.DescribeTopic(context.Background(), "t")
		if err != nil {
			rt.Fatal(err)
		}
		winner, err := strconv.Atoi(d.PartitionInfo[0].FencingToken)
		if err != nil {
			rt.Fatal(err)
		}
		for i, err := range won {
			if i == winner && err != nil && !errors.Is(err, client.ErrUnknownOutcome) || i != winner && !errors.Is(err, client.ErrFenced) {
				rt.Fatalf("%d won, and %d was told %v", winner, i, err)
			}
		}
	})
}

// A definite no after an attempt without an answer is not definite.
func TestFenceInDoubt(t *testing.T) {
	server := clienttest.New()
	c := open(t, server)
	createTopic(t, c, "t", 1)
	answers := []bool{true, false} // lost?
	server.OnFence = func(req *varvev1.FenceRequest, apply func() (*varvev1.FenceResponse, error)) (*varvev1.FenceResponse, error) {
		lost := answers[0]
		answers = answers[1:]
		if lost {
			return nil, clienttest.Refusal(true)
		}
		return apply()
	}
	_, err := c.Fence(t.Context(), "t", 0, "a", client.FenceOptions{CurrentToken: ptr(""), ExpectedOffset: ptr(int64(3))})
	var e *client.Error
	if !errors.Is(err, client.ErrOffsetMismatch) || !errors.Is(err, client.ErrUnknownOutcome) || !errors.As(err, &e) || e.ActualOffset != 0 {
		t.Errorf("want ErrOffsetMismatch with 0, in doubt; got %v", err)
	}
	answers = []bool{false}
	if _, err := c.Fence(t.Context(), "t", 0, strings.Repeat("x", 37), client.FenceOptions{}); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("want ErrInvalid, got %v", err)
	}
}

// With an expected offset the whole stream of one producer is there, without a gap, or ends where somebody else wrote.
func TestExpectedOffsets(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFleet(rapid.Uint64().Draw(rt, "seed"), 2, well, draining, held, cutOff)
		c := f.open(rt, client.Config{})
		makeTopic(rt, c, 1)
		f.trouble = rapid.IntRange(0, 30).Draw(rt, "trouble")
		n := rapid.IntRange(1, 40).Draw(rt, "records")
		intruder := rapid.IntRange(0, 80).Draw(rt, "intruder")
		p, err := c.NewProducer(client.ProducerConfig{
			Topic: "t", BatchBytes: rapid.SampledFrom([]int{1, 200}).Draw(rt, "batch bytes"), Linger: client.NoLinger, ExpectedOffset: ptr(int64(0)),
		})
		if err != nil {
			rt.Fatal(err)
		}
		acked := make([]error, n)
		for i := range n {
			if i == intruder {
				_, err := c.Append(context.Background(), "t", 0, []client.Record{{Timestamp: ms(99)}}, client.AppendOptions{})
				if err != nil {
					rt.Fatal(err)
				}
			}
			err := p.Produce(context.Background(), client.Record{Timestamp: ms(int64(i))}, func(_ client.Ack, err error) { acked[i] = err })
			if err != nil {
				rt.Fatal(err)
			}
		}
		if err := p.Close(context.Background()); err != nil {
			rt.Fatal(err)
		}
		var got []int64
		for _, r := range collect(rt, c, client.ConsumerConfig{Topic: "t", End: client.Latest()}) {
			if at := r.Timestamp.UnixMilli(); at != 99 {
				if r.Offset != at || at != int64(len(got)) {
					rt.Fatalf("record %d is at %d, after %v", at, r.Offset, got)
				}
				got = append(got, at)
			}
		}
		for i, err := range acked {
			switch there := slices.Contains(got, int64(i)); {
			case err == nil && !there, err != nil && there && !errors.Is(err, client.ErrUnknownOutcome):
				rt.Fatalf("record %d: %v, there: %v", i, err, there)
			case err != nil && intruder >= n:
				rt.Fatalf("record %d failed though nobody else wrote: %v", i, err)
			}
		}
	})
}
