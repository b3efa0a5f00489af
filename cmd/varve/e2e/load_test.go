package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments/batch"
)

const (
	topic = "log"
	// shared partitions take records of all kinds, the one after them conditional appends only.
	sharedPartitions = 4
	allPartitions    = sharedPartitions + 1
	// callTime bounds an attempt: nobody waits longer for an answer.
	callTime = 20 * time.Second
)

// load is a number of clients that append until they are told to stop.
type load struct {
	*account
	url    string
	http   *http.Client
	client *client.Client
	raw    varvev1connect.LogServiceClient
	stop   chan struct{}
	all    sync.WaitGroup
	// requests are appends that a process is working on, as far as clients can know.
	requests atomic.Int64
}

func newLoad(t *testing.T, url string) *load {
	t.Helper()
	l := &load{account: &account{}, url: url, stop: make(chan struct{})}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	l.http = &http.Client{Transport: countRequests{transport, &l.requests}}
	var err error
	if l.client, err = client.New(client.Config{Servers: []string{url}, HTTPClient: l.http}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.client.Close() })
	l.raw = rawClient(l.http, url)
	return l
}

func rawClient(h *http.Client, url string) varvev1connect.LogServiceClient {
	return varvev1connect.NewLogServiceClient(connect.NewClient(connecthttp.NewTransport(h, url)))
}

// countRequests counts the produce requests that are open.
type countRequests struct {
	http.RoundTripper
	open *atomic.Int64
}

func (c countRequests) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/Produce") {
		c.open.Add(1)
		defer c.open.Add(-1)
	}
	return c.RoundTripper.RoundTrip(r)
}

// start starts the clients, two or three of each kind.
func (l *load) start(t *testing.T, r *rand.Rand) {
	clients := []func(id int, r *rand.Rand) error{
		l.single(plain), l.single(plain), l.single(buffered), l.single(buffered),
		l.producer(client.ProducerConfig{}), l.producer(client.ProducerConfig{Codec: client.Codec(batch.LZ4)}),
		l.producer(client.ProducerConfig{Acks: client.AcksBuffered}),
		l.repeating, l.conditional, l.conditional,
	}
	for id, run := range clients {
		r := fork(r)
		l.all.Go(func() {
			if err := run(id, r); err != nil {
				t.Errorf("client %d: %v", id, err)
			}
		})
	}
}

// finish stops the clients and waits until they have their answers.
func (l *load) finish(t *testing.T) {
	t.Helper()
	close(l.stop)
	done := make(chan struct{})
	go func() { l.all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * patience):
		t.Fatal("clients wait for answers that don't come")
	}
}

// stopped waits a moment, in which others work too, and says whether to stop.
func (l *load) stopped(pause time.Duration) bool {
	select {
	case <-l.stop:
		return true
	case <-time.After(pause):
		return false
	}
}

// between is a moment that a client takes before it goes on, and the longer one before it tries a
// server again that is not there.
func between(r *rand.Rand) time.Duration { return time.Duration(r.IntN(4)) * time.Millisecond }

const awayPause = 15 * time.Millisecond

// single is a client that sends each batch once, over the bare API.
func (l *load) single(k kind) func(int, *rand.Rand) error {
	return func(id int, r *rand.Rand) error {
		for !l.stopped(between(r)) {
			partition := r.Int32N(sharedPartitions)
			op, values := l.begin(k, id, partition, 1+r.IntN(4))
			request, err := randomRequest(r, partition, values, batch.NoProducer)
			if err != nil {
				return err
			}
			if k == buffered {
				request.Acks = varvev1.Acks_ACKS_BUFFERED
			}
			base, err := l.produce(request)
			o := outcomeOf(err)
			if o == confirmed && (base >= 0) == (k == buffered) {
				l.fault("a %s append was acked with offset %d", k, base)
			}
			l.end(op, o, base)
			if err != nil && l.stopped(awayPause) {
				return nil
			}
		}
		return nil
	}
}

// repeating is a client that sends each batch, with a producer id, until it is told that it is there.
func (l *load) repeating(id int, r *rand.Rand) error {
	var identity *varvev1.InitProducerResponse
	err := untilAnswered(func() (err error) {
		identity, err = l.raw.InitProducer(context.Background(), &varvev1.InitProducerRequest{})
		return err
	})
	if err != nil {
		return err
	}
	var sequences [sharedPartitions]int32
	for !l.stopped(between(r)) {
		partition := r.Int32N(sharedPartitions)
		op, values := l.begin(idempotent, id, partition, 1+r.IntN(4))
		request, err := randomRequest(r, partition, values, batch.BuildOptions{
			ProducerID: identity.GetProducerId(), ProducerEpoch: int16(identity.GetProducerEpoch()), BaseSequence: sequences[partition],
		})
		if err != nil {
			return err
		}
		var base int64
		if err := untilAnswered(func() (err error) { base, err = l.produce(request); return err }); err != nil {
			return err
		}
		l.end(op, confirmed, base)
		sequences[partition] += int32(op.records)
	}
	return nil
}

// untilAnswered calls until that succeeds, whatever happens to the server meanwhile.
func untilAnswered(call func() error) error {
	deadline := time.Now().Add(2 * patience)
	for {
		err := call()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the same call failed for %s: %w", 2*patience, err)
		}
		time.Sleep(awayPause) // nobody tells when a server is back
	}
}

// randomRequest holds the records ready in a batch, with any codec, or as they are.
func randomRequest(r *rand.Rand, partition int32, values [][]byte, o batch.BuildOptions) (*varvev1.ProduceRequest, error) {
	request := &varvev1.ProduceRequest{Topic: topic, Partition: &partition}
	if o == batch.NoProducer && r.IntN(2) == 0 {
		for _, v := range values {
			request.Records = append(request.Records, &varvev1.Record{Value: v})
		}
		return request, nil
	}
	codecs := []batch.Codec{batch.None, batch.Gzip, batch.Snappy, batch.LZ4, batch.Zstd}
	builder := batch.NewBuilder(codecs[r.IntN(len(codecs))])
	for _, v := range values {
		// Not in order: lookups by time must not need that.
		if err := builder.Append(batch.Record{Timestamp: time.Now().UnixMilli() - r.Int64N(2000), Value: v}); err != nil {
			return nil, err
		}
	}
	var err error
	request.RecordBatch, err = builder.Build(o)
	return request, err
}

// produce sends a request for one partition, once.
func (l *load) produce(request *varvev1.ProduceRequest) (base int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	response, err := l.raw.Produce(ctx, request)
	if err != nil {
		return -1, err
	}
	if len(response.GetResults()) != 1 || response.GetResults()[0].GetError() != nil {
		l.fault("a call for one partition succeeded with %v", response)
		return -1, errors.New("an answer that is none")
	}
	if response.GetResults()[0].GetDuplicate() {
		l.repeated()
	}
	return response.GetResults()[0].GetBaseOffset(), nil
}

// outcomeOf judges the error of a call of the bare API by what the API promises: details say whether
// the outcome is unknown. What no server said is unknown, unless there was no connection.
func outcomeOf(err error) outcome {
	var remote *connect.Error
	var op *net.OpError
	switch {
	case err == nil:
		return confirmed
	case errors.As(err, &remote) && remote.IsRemote():
		if info := infoOf(remote); info != nil && !info.GetUnknownOutcome() {
			return refused
		}
		return unknown
	case errors.As(err, &op) && op.Op == "dial":
		return refused
	}
	return unknown
}

// infoOf returns the details of an error, or nil.
func infoOf(err error) *varvev1.ErrorInfo {
	var remote *connect.Error
	if !errors.As(err, &remote) {
		return nil
	}
	for _, d := range remote.Details() {
		if m, err := connectproto.UnmarshalErrorDetail(d); err == nil {
			if info, ok := m.(*varvev1.ErrorInfo); ok {
				return info
			}
		}
	}
	return nil
}

// outcomeOfClient judges an error of package client.
func outcomeOfClient(err error) outcome {
	switch {
	case err == nil:
		return confirmed
	case errors.Is(err, client.ErrUnknownOutcome):
		return unknown
	}
	return refused
}

// producer is a client.Producer with some records on their way.
func (l *load) producer(cfg client.ProducerConfig) func(int, *rand.Rand) error {
	return func(id int, r *rand.Rand) error {
		cfg.Topic, cfg.Partitioning, cfg.Linger = topic, client.PartitionAsGiven, 2*time.Millisecond
		k := idempotent
		if cfg.Acks == client.AcksBuffered {
			k = buffered
		}
		p, err := l.client.NewProducer(cfg)
		if err != nil {
			return err
		}
		const onTheirWay = 20
		room := make(chan struct{}, onTheirWay)
		for !l.stopped(between(r)) {
			room <- struct{}{}
			op, values := l.begin(k, id, r.Int32N(sharedPartitions), 1)
			err := p.Produce(context.Background(), client.Record{Partition: op.partition, Value: values[0]}, func(ack client.Ack, err error) {
				if ack.Duplicate {
					l.repeated()
				}
				l.end(op, outcomeOfClient(err), ack.BaseOffset)
				<-room
			})
			if err != nil {
				<-room
				l.end(op, refused, -1)
				if !errors.Is(err, client.ErrUnavailable) {
					return err
				}
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
		defer cancel()
		return p.Close(ctx)
	}
}

// conditional is a client that appends where it believes the end to be, in competition with another.
func (l *load) conditional(id int, r *rand.Rand) error {
	// The appends of one Client take turns, and these are to race.
	c, err := client.New(client.Config{Servers: []string{l.url}, HTTPClient: l.http})
	if err != nil {
		return err
	}
	defer c.Close()
	const partition = sharedPartitions
	next := int64(0)
	for !l.stopped(between(r)) {
		op, values := l.begin(conditional, id, partition, 1+r.IntN(3))
		var records []client.Record
		for _, v := range values {
			records = append(records, client.Record{Value: v})
		}
		expected := next
		ack, err := c.Append(context.Background(), topic, partition, records, client.AppendOptions{ExpectedOffset: &expected})
		if err == nil && ack.BaseOffset != expected {
			l.fault("an append expected offset %d and was acked at %d", expected, ack.BaseOffset)
		}
		if err == nil && ack.Duplicate {
			l.repeated()
		}
		l.end(op, outcomeOfClient(err), ack.BaseOffset)
		var mismatch *client.Error
		switch {
		case err == nil:
			next = ack.LastOffset + 1
		case errors.As(err, &mismatch) && mismatch.ActualOffset >= 0:
			next = mismatch.ActualOffset
		}
	}
	return nil
}
