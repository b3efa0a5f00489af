package clienttest

import (
	"context"
	"math"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/segments/batch"
)

// Produce implements the API, behind OnProduce.
func (s *Server) Produce(_ context.Context, req *varvev1.ProduceRequest) (*varvev1.ProduceResponse, error) {
	if s.OnProduce == nil {
		return s.produce(req)
	}
	// The request is the caller's again once this returns, and the hook may apply it after that.
	req = proto.CloneOf(req)
	return s.OnProduce(req, func() (*varvev1.ProduceResponse, error) { return s.produce(req) })
}

func (s *Server) produce(req *varvev1.ProduceRequest) (*varvev1.ProduceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.lookup(req.GetTopic()); err != nil {
		if s.AutoCreate == 0 {
			return nil, err
		}
		s.create(req.GetTopic(), s.AutoCreate, nil)
	}
	batches := map[int32][]byte{req.GetPartition(): req.GetRecordBatch()}
	if len(req.GetRecords()) > 0 {
		var err error
		if batches, err = s.spread(req); err != nil {
			return nil, err
		}
	}
	res := &varvev1.ProduceResponse{}
	for n, data := range batches {
		p, err := s.lookupPartition(req.GetTopic(), n)
		if err != nil {
			return nil, err
		}
		r, err := p.append(data, req)
		if err != nil {
			return nil, err
		}
		res.Results = append(res.Results, r)
	}
	s.wake()
	return res, nil
}

// spread makes batches of plain records.
func (s *Server) spread(req *varvev1.ProduceRequest) (map[int32][]byte, error) {
	builders := make(map[int32]*batch.Builder)
	count := int32(len(s.topics[req.GetTopic()].partitions))
	for _, r := range req.GetRecords() {
		n := batch.PartitionForKey(r.GetKey(), count)
		if req.Partition != nil {
			n = req.GetPartition()
		}
		if r.Partition != nil {
			n = r.GetPartition()
		}
		if builders[n] == nil {
			builders[n] = batch.NewBuilder(batch.None)
		}
		rec := batch.Record{Timestamp: time.Now().UnixMilli(), Key: r.Key, Value: r.Value}
		if r.Timestamp != nil {
			rec.Timestamp = r.GetTimestamp()
		}
		for _, h := range r.GetHeaders() {
			rec.Headers = append(rec.Headers, batch.RecordHeader{Key: h.GetKey(), Value: h.Value})
		}
		if err := builders[n].Append(rec); err != nil {
			return nil, fail(connect.CodeInvalidArgument, nil, "%v", err)
		}
	}
	batches := make(map[int32][]byte)
	for n, b := range builders {
		data, err := b.Build(batch.NoProducer)
		if err != nil {
			return nil, fail(connect.CodeInvalidArgument, nil, "%v", err)
		}
		batches[n] = data
	}
	return batches, nil
}

// InitProducer implements the API.
func (s *Server) InitProducer(context.Context, *varvev1.InitProducerRequest) (*varvev1.InitProducerResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.producers++
	return &varvev1.InitProducerResponse{ProducerId: s.producers}, nil
}

// ForgetProducers drops what partitions know of producers, as expiry does.
func (s *Server) ForgetProducers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.topics {
		for _, p := range t.partitions {
			clear(p.producers)
		}
	}
}

// Corrupt flips a byte in the records of a partition's last batch.
func (s *Server) Corrupt(topic string, partition int32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.lookupPartition(topic, partition)
	if err == nil {
		last := p.batches[len(p.batches)-1].data
		last[len(last)-1] ^= 1
	}
	return err
}

// ListOffsets implements the API by looking at every record.
func (s *Server) ListOffsets(_ context.Context, req *varvev1.ListOffsetsRequest) (*varvev1.ListOffsetsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	partitions, err := s.selected(req.GetTopic(), req.GetPartitions())
	if err != nil {
		return nil, err
	}
	res := &varvev1.ListOffsetsResponse{}
	res.Linearizable = req.GetLinearizable()
	for _, p := range partitions {
		if !req.GetLinearizable() {
			p = s.late(p, 0)
		}
		res.Offsets = append(res.Offsets, p.answer(req))
	}
	return res, nil
}

func (p *partition) answer(req *varvev1.ListOffsetsRequest) *varvev1.PartitionOffset {
	o := &varvev1.PartitionOffset{Partition: p.number, Offset: -1, Timestamp: -1, StartOffset: p.start, EndOffset: p.end}
	var before *batch.Record
	switch q := req.GetQuery().(type) {
	case *varvev1.ListOffsetsRequest_AtOrAfter:
		o.Offset, o.Timestamp, o.Found = p.atOrAfter(q.AtOrAfter)
	case *varvev1.ListOffsetsRequest_Before:
		for r := range p.records {
			if r.Timestamp >= q.Before {
				break
			}
			before = &r
		}
	case *varvev1.ListOffsetsRequest_MaxTimestamp:
		for r := range p.records {
			if before == nil || r.Timestamp > before.Timestamp {
				before = &r
			}
		}
	case *varvev1.ListOffsetsRequest_Earliest:
		o.Offset, o.Found = p.start, true
		if first, ts, ok := p.atOrAfter(math.MinInt64); ok && first == p.start {
			o.Timestamp = ts
		}
	default:
		o.Offset, o.Found = p.end, true
	}
	if before != nil {
		o.Offset, o.Timestamp, o.Found = before.Offset, before.Timestamp, true
	}
	return o
}

// Fetch implements the API.
func (s *Server) Fetch(ctx context.Context, req *varvev1.FetchRequest) (*varvev1.FetchResponse, error) {
	patience, cancel := context.WithTimeout(ctx, time.Duration(min(req.GetMaxWaitMs(), 30_000))*time.Millisecond)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.lookupPartition(req.GetTopic(), req.GetPartition())
	if err != nil {
		return nil, err
	}
	view := p
	if !req.GetLinearizable() {
		view = s.late(p, req.GetSeenHighWatermark())
	}
	start, err := view.place(req.GetStart())
	if err != nil && view != p {
		view = p // Nothing is called out of range by one who may be late.
		start, err = view.place(req.GetStart())
	}
	if err != nil {
		return nil, err
	}
	for ; ; view = p {
		data, next := view.read(start, math.MaxInt64, orDefault(req.GetMaxBytes()), req.GetTimeRange())
		if next > start || !s.waitChange(patience) {
			return &varvev1.FetchResponse{
				RecordBatches: data, NextOffset: next, LogStartOffset: view.start, HighWatermark: view.end, StartOffset: start,
				Linearizable: req.GetLinearizable(),
			}, nil
		}
	}
}

// waitChange gives up the lock until something was appended, or returns false when ctx ends.
func (s *Server) waitChange(ctx context.Context) bool {
	changed := s.changed
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-changed:
		return true
	case <-ctx.Done():
		return false
	}
}

func orDefault(maxBytes int32) int {
	if maxBytes <= 0 {
		return 1 << 20
	}
	return int(maxBytes)
}

// follower is a stream's place in one partition.
type follower struct {
	p *partition
	// view is what this gateway knows of p.
	view      *partition
	next, end int64
}

// Consume implements the API.
func (s *Server) Consume(ctx context.Context, req *varvev1.ConsumeRequest, stream varvev1connect.LogServiceConsumeServerStream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	followers, err := s.followers(req)
	if err != nil {
		return err
	}
	for len(followers) > 0 {
		var messages []*varvev1.ConsumeResponse
		for _, f := range followers {
			if m, err := f.message(req); err != nil {
				return err
			} else if m != nil {
				messages = append(messages, m)
			}
		}
		followers = slices.DeleteFunc(followers, func(f *follower) bool { return f.next >= f.end })
		if err := s.sendAll(messages, stream); err != nil {
			return err
		}
		if caughtUp := catchUp(followers); len(messages) == 0 && len(followers) > 0 && !caughtUp && !s.waitChange(ctx) {
			return ctx.Err()
		}
		if s.topics[req.GetTopic()] == nil {
			_, err := s.lookup(req.GetTopic())
			return err
		}
	}
	return nil
}

func (s *Server) followers(req *varvev1.ConsumeRequest) ([]*follower, error) {
	ranges := req.GetPartitions()
	if len(ranges) == 0 {
		t, err := s.lookup(req.GetTopic())
		if err != nil {
			return nil, err
		}
		for _, p := range t.partitions {
			ranges = append(ranges, &varvev1.PartitionRange{Partition: p.number})
		}
	}
	var out []*follower
	for _, r := range ranges {
		p, err := s.lookupPartition(req.GetTopic(), r.GetPartition())
		if err != nil {
			return nil, err
		}
		f := &follower{p: p, view: s.late(p, r.GetSeenHighWatermark()), end: math.MaxInt64}
		if f.next, err = f.view.place(r.GetStart()); err != nil && f.view != p {
			f.view = p // As in Fetch.
			f.next, err = p.place(r.GetStart())
		}
		if err != nil {
			return nil, err
		}
		if at, ok := r.GetEnd().GetAt().(*varvev1.Place_Offset); ok {
			f.end = at.Offset
		} else if r.GetEnd() != nil {
			if f.end, err = f.view.place(r.GetEnd()); err != nil {
				return nil, err
			}
		}
		out = append(out, f)
	}
	return out, nil
}

// catchUp tells followers of what their gateway was late to hear of.
func catchUp(followers []*follower) (late bool) {
	for _, f := range followers {
		late = late || f.view.end < f.p.end
		f.view = f.p
	}
	return late
}

// message is what there is for a follower, nil if there is nothing.
func (f *follower) message(req *varvev1.ConsumeRequest) (*varvev1.ConsumeResponse, error) {
	if f.next < f.p.start {
		return nil, f.p.outOfRange(f.next)
	}
	start := f.next
	data, next := f.view.read(start, f.end, orDefault(req.GetMaxMessageBytes()), req.GetTimeRange())
	f.next = next
	if next == start && start < f.end {
		return nil, nil
	}
	return &varvev1.ConsumeResponse{
		Partition: f.p.number, RecordBatches: data, StartOffset: start, NextOffset: next,
		LogStartOffset: f.p.start, HighWatermark: f.view.end, End: next >= f.end,
	}, nil
}

// sendAll sends without the lock.
func (s *Server) sendAll(messages []*varvev1.ConsumeResponse, stream varvev1connect.LogServiceConsumeServerStream) error {
	s.mu.Unlock()
	defer s.mu.Lock()
	for _, m := range messages {
		if s.OnConsume != nil {
			if err := s.OnConsume(m); err != nil {
				return err
			}
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}
