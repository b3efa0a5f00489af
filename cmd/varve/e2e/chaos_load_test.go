package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"sync"
	"testing"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments/batch"
)

const (
	// The chaos topic: shared partitions, then one for conditional and one for fenced appends.
	conditionalPartition = sharedPartitions
	fencedPartition      = sharedPartitions + 1
	chaosPartitions      = sharedPartitions + 2
	// chaosCall bounds an attempt: longer than a pause of a gateway, shorter than a request that is kept.
	chaosCall = 6 * time.Second
	// givenUp is how long the same append may fail before that is a failure of the run.
	givenUp = 90 * time.Second
)

// storm is clients that append through all gateways of a fleet until they are told to stop.
type storm struct {
	*account
	fleet *fleet
	found *anomalies
	http  *http.Client
	stop  chan struct{}
	all   sync.WaitGroup

	mu       sync.Mutex
	commits  map[int32]time.Time     // by partition: when the newest one was acked
	silences map[int32]time.Duration // the longest without any
	failures map[string]int          // what refusals and unknown outcomes said
	fences   []fence
	samples  []timeSample
	checks   int // linearizable reads that were checked
}

func newStorm(t *testing.T, f *fleet, found *anomalies) *storm {
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &storm{
		account: &account{}, fleet: f, found: found, http: &http.Client{Transport: transport}, stop: make(chan struct{}),
		commits: make(map[int32]time.Time), silences: make(map[int32]time.Duration), failures: make(map[string]int),
	}
}

// client has the addresses of all gateways, beginning with one.
func (s *storm) client(t *testing.T, first int) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Servers: s.fleet.urls(first), HTTPClient: s.http, RequestTimeout: chaosCall})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// start starts the clients.
func (s *storm) start(t *testing.T, r *rand.Rand) {
	lz4 := client.ProducerConfig{Codec: client.Codec(batch.LZ4)}
	clients := []func(id int, r *rand.Rand) error{
		s.single(plain), s.single(plain), s.single(buffered), s.single(buffered),
		s.repeating, s.repeating,
		s.producer(s.client(t, 0), client.ProducerConfig{}), s.producer(s.client(t, 2), lz4), s.bufferedProducer,
		s.racing, s.racing, s.appending(s.client(t, 1)), s.appending(s.client(t, 3)),
		s.fencing, s.fencing,
		s.watching, s.asking,
	}
	for id, run := range clients {
		r := fork(r)
		s.all.Go(func() {
			if err := run(id, r); err != nil {
				t.Errorf("client %d: %v", id, err)
			}
		})
	}
}

// finish stops the clients and waits until they have their answers.
func (s *storm) finish(t *testing.T) {
	t.Helper()
	close(s.stop)
	done := make(chan struct{})
	go func() { s.all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(givenUp + patience):
		t.Fatalf("clients wait for answers that don't come: operations\n%swhat failed: %s\nunderway: %s", s.table(), s.told(), s.underway())
	}
}

// told counts what appends were told when they failed.
func (s *storm) told() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return inOrder(s.failures)
}

// underway counts by client and partition what has no answer.
func (s *storm) underway() string {
	s.account.mu.Lock()
	defer s.account.mu.Unlock()
	counts := make(map[string]int)
	for _, op := range s.operations {
		if op.outcome == underway {
			counts[fmt.Sprintf("client %d, %s in partition %d", op.client, op.kind, op.partition)]++
		}
	}
	return inOrder(counts)
}

// rests waits for up to twice so long, in which others work too, and says whether to go on.
func (s *storm) rests(r *rand.Rand, about time.Duration) bool {
	select {
	case <-s.stop:
		return false
	case <-time.After(time.Duration(r.Float64() * 2 * float64(about))):
		return true
	}
}

const (
	betweenAppends = 25 * time.Millisecond
	// afterFailure is longer: somebody who cannot append should not fill the account with that.
	afterFailure = 150 * time.Millisecond
)

// pauseAfter is what to wait after an append that ended so.
func pauseAfter(err error) time.Duration {
	if err != nil {
		return afterFailure
	}
	return betweenAppends
}

// judged enters the end of an operation into the account.
func (s *storm) judged(op *operation, o outcome, base int64, err error) {
	var mismatch *client.Error
	op.beaten = o == refused && (reasonOf(err) == "OFFSET_MISMATCH" || reasonOf(err) == "FENCING_TOKEN_MISMATCH" ||
		errors.As(err, &mismatch) && (errors.Is(err, client.ErrOffsetMismatch) || errors.Is(err, client.ErrFenced)))
	s.end(op, o, base)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && !op.beaten {
		s.failures[o.String()+": "+inShort(err)]++
	}
	if o != confirmed || base < 0 {
		return
	}
	if last, any := s.commits[op.partition]; any {
		s.silences[op.partition] = max(s.silences[op.partition], time.Since(last))
	}
	s.commits[op.partition] = time.Now()
}

// send makes an append once, through one gateway.
func (s *storm) send(p *post, request *varvev1.ProduceRequest) (base int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), chaosCall)
	defer cancel()
	response, err := rawClient(s.http, p.url()).Produce(ctx, request)
	if err != nil {
		return -1, err
	}
	if len(response.GetResults()) != 1 || response.GetResults()[0].GetError() != nil {
		s.fault("a call for one partition succeeded with %v", response)
		return -1, errors.New("an answer that is none")
	}
	result := response.GetResults()[0]
	if result.GetDuplicate() {
		s.repeated()
	}
	if asked, got := max(request.GetAcks(), varvev1.Acks_ACKS_COMMITTED), result.GetAcks(); asked != got || (got == varvev1.Acks_ACKS_BUFFERED) != (result.GetBaseOffset() < 0) {
		s.fault("an append with acks %s was answered with %s at offset %d", asked, got, result.GetBaseOffset())
	}
	return result.GetBaseOffset(), nil
}

// single sends each batch once, through any gateway.
func (s *storm) single(k kind) func(int, *rand.Rand) error {
	return func(id int, r *rand.Rand) error {
		var err error
		for s.rests(r, pauseAfter(err)) {
			op, values := s.begin(k, id, r.Int32N(sharedPartitions), 1+r.IntN(4))
			request, failed := randomRequest(r, op.partition, values, batch.NoProducer)
			if failed != nil {
				return failed
			}
			p := s.fleet.pick(r)
			disk := p.disks()
			if k == buffered {
				request.Acks = varvev1.Acks_ACKS_BUFFERED
			}
			var base int64
			base, err = s.send(p, request)
			if k == buffered {
				op.disks = p.since(disk)
			}
			s.judged(op, outcomeOf(err), base, err)
		}
		return nil
	}
}

// repeating sends each batch, with a producer id, until it is told that it is there, each time through another gateway.
func (s *storm) repeating(id int, r *rand.Rand) error {
	var identity *varvev1.InitProducerResponse
	err := s.untilAnswered(r, func(p *post) (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), chaosCall)
		defer cancel()
		identity, err = rawClient(s.http, p.url()).InitProducer(ctx, &varvev1.InitProducerRequest{})
		return err
	})
	if err != nil {
		return err
	}
	var sequences [sharedPartitions]int32
	for s.rests(r, betweenAppends) {
		op, values := s.begin(idempotent, id, r.Int32N(sharedPartitions), 1+r.IntN(4))
		request, err := randomRequest(r, op.partition, values, batch.BuildOptions{
			ProducerID: identity.GetProducerId(), ProducerEpoch: int16(identity.GetProducerEpoch()), BaseSequence: sequences[op.partition],
		})
		if err != nil {
			return err
		}
		var base int64
		if err := s.untilAnswered(r, func(p *post) (err error) { base, err = s.send(p, request); return err }); err != nil {
			return err
		}
		s.judged(op, confirmed, base, nil)
		sequences[op.partition] += int32(op.records)
	}
	return nil
}

// untilAnswered calls one gateway after the other until that succeeds.
func (s *storm) untilAnswered(r *rand.Rand, call func(*post) error) error {
	deadline := time.Now().Add(givenUp)
	for {
		err := call(s.fleet.pick(r))
		if err == nil {
			return nil
		}
		s.mu.Lock()
		s.failures["again: "+inShort(err)]++
		s.mu.Unlock()
		if time.Now().After(deadline) {
			return fmt.Errorf("the same call failed for %s: %w", givenUp, err)
		}
		time.Sleep(afterFailure) // nobody tells when a gateway is back
	}
}

// producer is a client.Producer with some records on their way.
func (s *storm) producer(c *client.Client, cfg client.ProducerConfig) func(int, *rand.Rand) error {
	return func(id int, r *rand.Rand) error {
		return s.produce(c, cfg, id, r, idempotent, nil)
	}
}

// bufferedProducer is one for buffered appends, bound to one gateway so that it is known where they lie.
func (s *storm) bufferedProducer(id int, r *rand.Rand) error {
	p := s.fleet.posts[0]
	c, err := client.New(client.Config{Servers: []string{p.url()}, HTTPClient: s.http, RequestTimeout: chaosCall})
	if err != nil {
		return err
	}
	defer c.Close()
	return s.produce(c, client.ProducerConfig{Acks: client.AcksBuffered}, id, r, buffered, p)
}

func (s *storm) produce(c *client.Client, cfg client.ProducerConfig, id int, r *rand.Rand, k kind, pinned *post) error {
	cfg.Topic, cfg.Partitioning, cfg.Linger, cfg.DeliveryTimeout = topic, client.PartitionAsGiven, 2*time.Millisecond, givenUp
	producer, err := c.NewProducer(cfg)
	if err != nil {
		return err
	}
	const onTheirWay = 10
	room := make(chan struct{}, onTheirWay)
	for s.rests(r, betweenAppends) {
		room <- struct{}{}
		op, values := s.begin(k, id, r.Int32N(sharedPartitions), 1)
		disk := 0
		if pinned != nil {
			disk = pinned.disks()
		}
		done := func(ack client.Ack, err error) {
			if ack.Duplicate {
				s.repeated()
			}
			if pinned != nil {
				op.disks = pinned.since(disk)
			}
			s.judged(op, outcomeOfClient(err), ack.BaseOffset, err)
			<-room
		}
		if err := producer.Produce(context.Background(), client.Record{Partition: op.partition, Value: values[0]}, done); err != nil {
			done(client.Ack{BaseOffset: -1}, err) // the topic could not be looked up
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), givenUp)
	defer cancel()
	return producer.Close(ctx)
}

// racing appends where it believes the end to be, once, through any gateway.
func (s *storm) racing(id int, r *rand.Rand) error {
	next := int64(0)
	var err error
	for s.rests(r, pauseAfter(err)) {
		op, values := s.begin(conditional, id, conditionalPartition, 1+r.IntN(3))
		request, failed := randomRequest(r, op.partition, values, batch.NoProducer)
		if failed != nil {
			return failed
		}
		op.expected, request.ExpectedOffset = next, &next
		var base int64
		base, err = s.send(s.fleet.pick(r), request)
		s.judged(op, outcomeOf(err), base, err)
		switch info := infoOf(err); {
		case err == nil:
			next = base + int64(op.records)
		case info != nil && info.ActualOffset != nil:
			next, err = info.GetActualOffset(), nil
		}
	}
	return nil
}

// appending does the same with Client.Append, which repeats what it does not know.
func (s *storm) appending(c *client.Client) func(int, *rand.Rand) error {
	return func(id int, r *rand.Rand) error {
		next := int64(0)
		var err error
		for s.rests(r, pauseAfter(err)) {
			op, values := s.begin(conditional, id, conditionalPartition, 1+r.IntN(3))
			var records []client.Record
			for _, v := range values {
				records = append(records, client.Record{Value: v})
			}
			expected := next
			op.expected = expected
			var ack client.Ack
			ack, err = c.Append(context.Background(), topic, op.partition, records, client.AppendOptions{ExpectedOffset: &expected})
			if err == nil && ack.Duplicate {
				s.repeated()
			}
			s.judged(op, outcomeOfClient(err), ack.BaseOffset, err)
			var mismatch *client.Error
			switch {
			case err == nil:
				next = ack.LastOffset + 1
			case errors.As(err, &mismatch) && mismatch.ActualOffset >= 0:
				next, err = mismatch.ActualOffset, nil
			}
		}
		return nil
	}
}

// reasonOf is the reason that an error's details name.
func reasonOf(err error) string { return infoOf(err).GetReason() }

var digits = regexp.MustCompile(`[0-9]+`)

// inShort is an error as a key to count it by.
func inShort(err error) string {
	if reason := reasonOf(err); reason != "" {
		return reason
	}
	var named *client.Error
	if errors.As(err, &named) && named.Reason != "" {
		return named.Reason
	}
	text := digits.ReplaceAllString(err.Error(), "N")
	return text[:min(len(text), 100)]
}
