package client

import (
	"context"
	"net/http/httptrace"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/segments/batch"
)

// send is one of MaxInFlight loops.
func (p *Producer) send() {
	for part := p.ready.pop(); part != nil; part = p.ready.pop() {
		switch s, server := part.next(); {
		case s.identify:
			part.identified(p.producerID(s.fresh))
			p.ready.push(part)
		case s.send != nil:
			ack, err := p.deliver(part, s.send, server)
			part.result(s.send, ack, err)
			p.ready.push(part)
		}
		part.deliver()
	}
}

// deliver makes one attempt.
func (p *Producer) deliver(part *partition, b *pending, server *endpoint) (Ack, *Error) {
	data, err := p.encode(b)
	if err != nil {
		return Ack{}, invalidf("%v", err)
	}
	deadline := time.Now().Add(p.c.cfg.RequestTimeout)
	if b.deadline.Before(deadline) {
		deadline = b.deadline
	}
	ctx, cancel := context.WithDeadline(p.ctx, deadline)
	defer cancel()
	if p.c.servers.dropIdle == nil {
		// No connections, so nothing to overtake on.
		part.handedOver(b)
	} else {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			WroteRequest: func(httptrace.WroteRequestInfo) { part.handedOver(b) },
		})
	}
	return p.c.append(ctx, server, part.lane.where, p.cfg.Acks, data, p.conditions(b))
}

// conditions are those of a batch.
func (p *Producer) conditions(b *pending) AppendOptions {
	o := AppendOptions{FencingToken: p.cfg.FencingToken}
	if b.expected != noOffset {
		o.ExpectedOffset = &b.expected
	}
	return o
}

// encode builds a batch, or builds it again when its sequence has changed.
func (p *Producer) encode(b *pending) ([]byte, error) {
	if b.builder != nil {
		data, err := b.builder.Build(b.carries)
		if err != nil {
			return nil, err
		}
		b.builder.Reset()
		p.builders.Put(b.builder)
		b.builder, b.data, b.built = nil, data, b.carries
	}
	if b.built != b.carries {
		data, err := rebuild(b.data, p.cfg.Codec, b.carries)
		if err != nil {
			return nil, err
		}
		b.data, b.built = data, b.carries
	}
	return b.data, nil
}

// rebuild gives a batch other producer fields.
func rebuild(data []byte, codec Codec, carries batch.BuildOptions) ([]byte, error) {
	builder := batch.NewBuilder(codec)
	for rec, err := range batch.Records(data, ownLimits) {
		if err != nil {
			return nil, err
		}
		if err := builder.Append(rec); err != nil {
			return nil, err
		}
	}
	return builder.Build(carries)
}

// append sends one batch once, with conditions.
func (c *Client) append(ctx context.Context, e *endpoint, where topicPartition, acks Acks, data []byte, opts AppendOptions) (Ack, *Error) {
	req := &varvev1.ProduceRequest{Topic: where.topic, Partition: &where.partition, Acks: acks.message(), RecordBatch: data}
	opts.conditions(req)
	res, err := e.log.Produce(ctx, req)
	if err != nil {
		failure := errorOf(err)
		if failure.Topic == "" {
			failure.Topic, failure.Partition = where.topic, where.partition
		}
		return Ack{}, failure
	}
	for _, r := range res.GetResults() {
		if r.GetPartition() != where.partition {
			continue
		}
		if r.GetError() != nil {
			return Ack{}, errorOfResult(where.topic, where.partition, r.GetError())
		}
		return ackOf(where.topic, r), nil
	}
	failure := newError(connect.CodeInternal, "the server's answer does not name the partition")
	failure.Topic, failure.Partition, failure.UnknownOutcome = where.topic, where.partition, true
	return Ack{}, failure
}

func ackOf(topic string, r *varvev1.ProduceResult) Ack {
	return Ack{
		Topic: topic, Partition: r.GetPartition(), BaseOffset: r.GetBaseOffset(), LastOffset: r.GetLastOffset(),
		Records: int(r.GetRecordCount()), Timestamp: timeOf(r.GetTimestamp()), Acks: acksOf(r.GetAcks()), Duplicate: r.GetDuplicate(),
	}
}

// producerID is what InitProducer gives out.
type producerID struct {
	id    int64
	epoch int16
}

// producerID returns the producer's first id, or a fresh one. A partition takes a fresh one after a
// failure, so that the others are not touched.
func (p *Producer) producerID(fresh bool) (producerID, error) {
	if fresh {
		return p.c.initProducer(p.ctx)
	}
	p.identityMu.Lock()
	defer p.identityMu.Unlock()
	if p.identity == nil {
		id, err := p.c.initProducer(p.ctx)
		if err != nil {
			return producerID{}, err
		}
		p.identity = &id
	}
	return *p.identity, nil
}

func (c *Client) initProducer(ctx context.Context) (producerID, error) {
	res, err := call(ctx, c, anyOutcome, func(ctx context.Context, e *endpoint) (*varvev1.InitProducerResponse, error) {
		return e.log.InitProducer(ctx, &varvev1.InitProducerRequest{})
	})
	if err != nil {
		return producerID{}, err
	}
	return producerID{res.GetProducerId(), int16(res.GetProducerEpoch())}, nil
}
