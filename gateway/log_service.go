package gateway

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/sync/errgroup"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

const (
	// maxRecords bounds the records of one request that come one by one.
	maxRecords = 100_000
	// defaultReadBytes is what a read returns when the caller does not say.
	defaultReadBytes = 1 << 20
	// maxWait bounds how long a Fetch may wait.
	maxWait = 30 * time.Second
	// lookupsAtOnce is how many partitions of one request are looked up at a time.
	lookupsAtOnce = 16
)

// logService implements varve.v1.LogService.
type logService struct{ g *Gateway }

// topic finds a topic that takes appends and reads.
func (g *Gateway) topic(ctx context.Context, name string) (*metadata.Topic, error) {
	if err := metadata.CheckTopicName(name); err != nil {
		return nil, err
	}
	t, err := g.topics.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	if t.State != metadata.TopicActive {
		return nil, refuse(connect.CodeNotFound, reasonTopicDeleted, "topic %q is being deleted", name).withTopic(name)
	}
	return t, nil
}

// onTopic does something with a topic, and once more when it turns out that another gateway
// has changed the topic, or deleted it and made another one of that name: what is known of
// topics may be a few seconds old. do must have done nothing when it fails like that.
func onTopic[T any](ctx context.Context, g *Gateway, name string, find func(context.Context, string) (*metadata.Topic, error), do func(*metadata.Topic) (T, error)) (T, error) {
	var none T
	t, err := find(ctx, name)
	if err != nil {
		return none, err
	}
	out, err := do(t)
	if err == nil {
		return out, nil
	}
	if reason := classify(err).info.GetReason(); reason != reasonTopicDeleted && reason != reasonPartitionNotFound {
		return none, err
	}
	now, refreshed := g.topics.Refresh(ctx, name)
	if refreshed != nil || now.Stamp == t.Stamp || now.State != metadata.TopicActive {
		return none, err
	}
	return do(now)
}

// partitionOf finds a partition of a topic.
func partitionOf(t *metadata.Topic, number int32) (metadata.PartitionID, error) {
	if number < 0 || number >= t.Partitions {
		return metadata.PartitionID{}, refuse(connect.CodeInvalidArgument, reasonPartitionNotFound,
			"topic %q has partitions 0 to %d, not %d", t.Name, t.Partitions-1, number).withTopic(t.Name).withPartition(number)
	}
	return metadata.PartitionID{Topic: t.ID, Number: number}, nil
}

// Produce implements varvev1connect.LogServiceHandler.
func (s *logService) Produce(ctx context.Context, req *varvev1.ProduceRequest) (*varvev1.ProduceResponse, error) {
	if s.g.config.Role == metadata.RoleCompactor {
		return nil, refuse(connect.CodeFailedPrecondition, reasonRole, "this process merges segments and takes no appends (--role compactor): ask a gateway")
	}
	began := time.Now()
	ack := segments.AckCommitted
	switch req.GetAcks() {
	case varvev1.Acks_ACKS_UNSPECIFIED, varvev1.Acks_ACKS_COMMITTED:
	case varvev1.Acks_ACKS_BUFFERED:
		ack = segments.AckBuffered
	default:
		return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "acks %d is not known; use ACKS_COMMITTED or ACKS_BUFFERED", req.GetAcks())
	}
	out, err := onTopic(ctx, s.g, req.GetTopic(), s.g.topicForProduce, func(t *metadata.Topic) (*varvev1.ProduceResponse, error) {
		return s.produceTo(ctx, t, req, ack)
	})
	if err != nil {
		return nil, err
	}
	s.g.meters.acked(ack, time.Since(began))
	return out, nil
}

// produceTo appends what a request holds to a topic. Errors stand in the results,
// unless nothing but errors came of it.
func (s *logService) produceTo(ctx context.Context, t *metadata.Topic, req *varvev1.ProduceRequest, ack segments.Ack) (*varvev1.ProduceResponse, error) {
	in := s.g.tenure.Load().intake
	arrived := in.arrive(bytesOf(req))
	defer func() { in.leave(&arrived, arrived) }() // where nothing is gathered
	batches, err := s.batches(t, req)
	if err != nil {
		return nil, err
	}
	if (req.ExpectedOffset != nil || req.FencingToken != nil) && len(batches) > 1 {
		return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "expected_offset and fencing_token go with one partition, the records are for %d", len(batches))
	}
	results := make([]*varvev1.ProduceResult, len(batches))
	errs := s.produce(ctx, in, t, req, ack, batches, results, &arrived)
	failed := 0
	for i, err := range errs {
		if err == nil {
			continue
		}
		if failed++; len(batches) > 1 {
			s.g.logInternal(err)
			results[i] = &varvev1.ProduceResult{Partition: batches[i].partition, BaseOffset: metadata.NoOffset, LastOffset: metadata.NoOffset,
				Timestamp: metadata.NoTimestamp, Error: produceError(err)}
		}
	}
	if failed == len(batches) {
		return nil, errs[0]
	}
	return &varvev1.ProduceResponse{Results: results}, nil
}

// bytesOf is about how many bytes of batches a request makes.
func bytesOf(req *varvev1.ProduceRequest) int64 {
	n := len(req.GetRecordBatch())
	for _, r := range req.GetRecords() {
		n += len(r.GetKey()) + len(r.GetValue())
	}
	return int64(n)
}

// topicForProduce finds the topic, and makes it if the configuration says so.
func (g *Gateway) topicForProduce(ctx context.Context, name string) (*metadata.Topic, error) {
	t, err := g.topic(ctx, name)
	if !errors.Is(err, metadata.ErrTopicNotFound) || g.config.AutoCreate <= 0 {
		return t, err
	}
	t, err = g.topics.Create(ctx, name, g.config.AutoCreate, nil, g.now())
	if errors.Is(err, metadata.ErrTopicExists) { // somebody else was quicker
		return g.topic(ctx, name)
	}
	if err == nil {
		g.log.Info("made a topic for its first produce", "topic", name, "partitions", t.Partitions)
	}
	return t, err
}

// partitionBatch is what a request appends to one partition.
type partitionBatch struct {
	partition int32
	data      []byte
}

// batches gets the request's records into one batch a partition.
func (s *logService) batches(t *metadata.Topic, req *varvev1.ProduceRequest) ([]partitionBatch, error) {
	switch {
	case len(req.GetRecordBatch()) > 0 && len(req.GetRecords()) > 0:
		return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "a request has either records or a record_batch, not both")
	case len(req.GetRecordBatch()) > 0:
		if req.Partition == nil {
			return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "a record_batch needs a partition")
		}
		if _, err := partitionOf(t, req.GetPartition()); err != nil {
			return nil, err
		}
		return []partitionBatch{{req.GetPartition(), req.GetRecordBatch()}}, nil
	case len(req.GetRecords()) == 0:
		return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "the request has neither records nor a record_batch")
	case len(req.GetRecords()) > maxRecords:
		return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "%d records in one request, the most is %d", len(req.GetRecords()), maxRecords)
	}
	builders := make(map[int32]*batch.Builder)
	sticky := rand.Int32N(t.Partitions) // one partition for all of a request's records without a key
	now := s.g.now().UnixMilli()
	for i, r := range req.GetRecords() {
		number, err := choosePartition(t, req, r, sticky)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		b := builders[number]
		if b == nil {
			b = batch.NewBuilder(batch.None)
			builders[number] = b
		}
		record := batch.Record{Timestamp: now, Key: r.Key, Value: r.Value}
		if ts := r.Timestamp; ts != nil && *ts != batch.NoTimestamp {
			if *ts < 0 {
				return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "record %d has timestamp %d: it must be 0 or more (ms since 1970), or -1 for now", i, *ts)
			}
			record.Timestamp = *ts
		}
		for _, h := range r.GetHeaders() {
			record.Headers = append(record.Headers, batch.RecordHeader{Key: h.GetKey(), Value: h.Value})
		}
		if err := b.Append(record); err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
	}
	out := make([]partitionBatch, 0, len(builders))
	for number, b := range builders {
		data, err := b.Build(batch.NoProducer)
		if err != nil {
			return nil, err
		}
		out = append(out, partitionBatch{number, data})
	}
	slices.SortFunc(out, func(a, b partitionBatch) int { return int(a.partition) - int(b.partition) })
	return out, nil
}

func choosePartition(t *metadata.Topic, req *varvev1.ProduceRequest, r *varvev1.Record, sticky int32) (int32, error) {
	var number int32
	switch {
	case r.Partition != nil:
		number = r.GetPartition()
	case req.Partition != nil:
		number = req.GetPartition()
	case r.Key != nil:
		return batch.PartitionForKey(r.Key, t.Partitions), nil
	default:
		return sticky, nil
	}
	_, err := partitionOf(t, number)
	return number, err
}

// produce appends batches, each to a partition of its own: a result or an error for each; nil where there is no error at all.
// arrived are its bytes that the intake knows of.
func (s *logService) produce(ctx context.Context, in *intake, t *metadata.Topic, req *varvev1.ProduceRequest, ack segments.Ack, batches []partitionBatch, results []*varvev1.ProduceResult, arrived *int64) (errs []error) {
	fail := func(i int, err error) {
		if errs == nil {
			errs = make([]error, len(batches))
		}
		errs[i] = placed(err, t.Name, batches[i].partition)
	}
	c, memory := newCall(len(batches)), bodyOf(ctx)
	for i, b := range batches {
		data, info, err := s.check(t, req, ack, b.data)
		batches[i].data = nil
		if err != nil {
			fail(i, err)
			continue
		}
		c.add(i, segments.SpanID{Topic: segments.TopicID(t.ID), Partition: b.partition}, data, info)
		if memory.holds(data) {
			c.batches[len(c.batches)-1].memory = memory
		}
	}
	if len(c.batches) == 0 {
		return errs
	}
	c.arrived, *arrived = *arrived, 0
	in.append(ctx, c)
	for n := range c.batches {
		a, result := &c.batches[n], c.outcome(n)
		err := result.err
		if err == nil {
			results[a.index], err = produced(batches[a.index].partition, &a.info, result)
		}
		if err != nil {
			fail(a.index, err)
		}
	}
	return errs
}

// check validates a batch, and what is demanded of it.
func (s *logService) check(t *metadata.Topic, req *varvev1.ProduceRequest, ack segments.Ack, data []byte) ([]byte, segments.BatchInfo, error) {
	data, info, err := s.g.validate(t, data)
	if err != nil {
		return nil, info, err
	}
	info.Ack, info.ExpectedOffset = ack, metadata.NoOffset
	if req.ExpectedOffset != nil {
		if info.ExpectedOffset = req.GetExpectedOffset(); info.ExpectedOffset < 0 {
			return nil, info, refuse(connect.CodeInvalidArgument, reasonInvalid, "expected_offset %d is negative", info.ExpectedOffset)
		}
	}
	if req.FencingToken != nil {
		if info.FencingToken, info.HasFencingToken = req.GetFencingToken(), true; len(info.FencingToken) > segments.MaxFencingToken {
			return nil, info, refuse(connect.CodeInvalidArgument, reasonInvalid, "a fencing token of %d bytes is longer than %d", len(info.FencingToken), segments.MaxFencingToken)
		}
	}
	if ack == segments.AckBuffered {
		if info.ProducerID != metadata.NoProducer || info.ExpectedOffset != metadata.NoOffset || info.HasFencingToken {
			return nil, info, refuseBuffered("what it promises could be refused later by a producer id, an expected offset or a fencing token")
		}
	}
	return data, info, nil
}

// produced tells what became of a batch.
func produced(partition int32, info *segments.BatchInfo, result appended) (*varvev1.ProduceResult, error) {
	out := &varvev1.ProduceResult{Partition: partition, BaseOffset: metadata.NoOffset, LastOffset: metadata.NoOffset,
		Timestamp: info.MaxTimestamp, RecordCount: info.Records, Acks: varvev1.Acks_ACKS_BUFFERED}
	if info.Ack == segments.AckBuffered {
		return out, nil
	}
	if err := refusedVerdict(result.verdict, info.ExpectedOffset); err != nil {
		return nil, err
	}
	out.Acks = varvev1.Acks_ACKS_COMMITTED
	out.BaseOffset = result.verdict.Offset
	out.LastOffset = out.BaseOffset + int64(info.Offsets) - 1
	out.LogStartOffset = result.start
	out.Duplicate = result.verdict.Outcome == metadata.Duplicate
	return out, nil
}

// placed adds where an error happened.
func placed(err error, topic string, partition int32) error {
	var r *refusal
	if !errors.As(err, &r) {
		err = fmt.Errorf("topic %q, partition %d: %w", topic, partition, err)
		if r = classify(err); r.info.GetReason() == "" {
			return err // the caller's own doing, or internal: then its cause belongs in the log
		}
	}
	return r.withTopic(topic).withPartition(partition)
}

// validate checks a batch against its records and the topic's rules. It returns the
// bytes to store, which differ only where the topic or the batch asks for the
// gateway's time.
func (g *Gateway) validate(t *metadata.Topic, data []byte) ([]byte, segments.BatchInfo, error) {
	limits := batch.DefaultLimits()
	limits.MaxBatchBytes = int(t.Config.MaxMessageBytes)
	limits.MaxRecordBytes = max(limits.MaxRecordBytes, limits.MaxBatchBytes)
	limits.MaxInflatedBytes = max(limits.MaxInflatedBytes, 2*limits.MaxBatchBytes)
	info, err := batch.Validate(data, limits)
	if err != nil {
		return nil, segments.BatchInfo{}, err
	}
	if info.Keyless && t.Config.Compacts() {
		return nil, segments.BatchInfo{}, refuse(connect.CodeInvalidArgument, reasonInvalidBatch,
			"a record has no key, but the topic keeps the last record of each key (cleanup.policy=%s): give every record a key", t.Config.Cleanup)
	}
	now := g.now().UnixMilli()
	switch {
	case t.Config.AppendTime:
		batch.SetAppendTime(data, now)
		if info.Header, err = batch.ParseHeader(data); err != nil {
			return nil, segments.BatchInfo{}, err
		}
		info.MinTimestamp, info.LastTimestamp = now, now
	case info.AppendTime():
		return nil, segments.BatchInfo{}, refuse(connect.CodeInvalidArgument, reasonInvalidBatch,
			"the batch says that its timestamps are the log's append time, but the topic has timestamp.type=create")
	case info.Untimed:
		if data, err = batch.Rewrite(data, limits, now); err != nil {
			return nil, segments.BatchInfo{}, err
		}
		if info, err = batch.Validate(data, limits); err != nil {
			return nil, segments.BatchInfo{}, err
		}
	}
	if limit := t.Config.FutureMaxMillis; !t.Config.AppendTime && limit < math.MaxInt64-now && info.MaxTimestamp > now+limit {
		return nil, segments.BatchInfo{}, refuse(connect.CodeInvalidArgument, reasonInvalidBatch,
			"timestamp %d lies %d ms in the future; the topic allows %d ms (timestamp.after.max.ms): check the producer's clock",
			info.MaxTimestamp, info.MaxTimestamp-now, limit)
	}
	return data, segments.BatchInfo{
		Size: int32(len(data)), Offsets: info.LastOffsetDelta + 1, Records: info.Count,
		MinTimestamp: info.MinTimestamp, MaxTimestamp: info.MaxTimestamp, LastTimestamp: info.LastTimestamp,
		CRC: info.CRC, ProducerID: info.ProducerID, ProducerEpoch: info.ProducerEpoch, BaseSequence: info.BaseSequence,
	}, nil
}

// InitProducer implements varvev1connect.LogServiceHandler.
func (s *logService) InitProducer(ctx context.Context, _ *varvev1.InitProducerRequest) (*varvev1.InitProducerResponse, error) {
	id, err := s.g.producerIDs.next(ctx, s.g.cluster)
	if err != nil {
		return nil, err
	}
	return &varvev1.InitProducerResponse{ProducerId: id}, nil
}

// producerIDs gives out ids from blocks that the table reserves.
type producerIDs struct {
	turn       chan struct{} // holds one while somebody takes an id: whoever waits for it can give up
	first, end int64
}

// producerBlock is how many ids one table write reserves.
const producerBlock = 1000

func (p *producerIDs) next(ctx context.Context, c *metadata.Cluster) (int64, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if p.first == p.end {
		first, err := c.AllocateProducers(ctx, producerBlock)
		if err != nil {
			return 0, err
		}
		p.first, p.end = first, first+producerBlock
	}
	p.first++
	return p.first - 1, nil
}

// ListOffsets implements varvev1connect.LogServiceHandler.
func (s *logService) ListOffsets(ctx context.Context, req *varvev1.ListOffsetsRequest) (*varvev1.ListOffsetsResponse, error) {
	began := time.Now()
	out, err := onTopic(ctx, s.g, req.GetTopic(), s.g.topic, func(t *metadata.Topic) (*varvev1.ListOffsetsResponse, error) {
		return s.listOffsets(ctx, t, req)
	})
	if err == nil {
		s.g.meters.lookedUp(time.Since(began))
	}
	return out, err
}

func (s *logService) listOffsets(ctx context.Context, t *metadata.Topic, req *varvev1.ListOffsetsRequest) (*varvev1.ListOffsetsResponse, error) {
	numbers := slices.Compact(slices.Sorted(slices.Values(req.GetPartitions())))
	if len(numbers) == 0 {
		numbers = make([]int32, t.Partitions)
		for i := range numbers {
			numbers[i] = int32(i)
		}
	}
	offsets := make([]*varvev1.PartitionOffset, len(numbers))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lookupsAtOnce)
	for i, number := range numbers {
		id, err := partitionOf(t, number)
		if err != nil {
			return nil, err
		}
		group.Go(func() (err error) {
			offsets[i], err = s.g.lookUp(ctx, id, req)
			if err != nil {
				return placed(err, t.Name, number)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return &varvev1.ListOffsetsResponse{Offsets: offsets, Linearizable: req.GetLinearizable()}, nil
}

// lookUp answers a ListOffsets query for one partition.
func (g *Gateway) lookUp(ctx context.Context, id metadata.PartitionID, req *varvev1.ListOffsetsRequest) (*varvev1.PartitionOffset, error) {
	var out *varvev1.PartitionOffset
	ctx = bill.ForTopic(ctx, id.Topic)
	view := g.view
	if req.GetLinearizable() {
		view = g.viewNow
	}
	err := g.withViewOf(ctx, id, view, func(v *metadata.View) error {
		if v.Closed {
			return refuse(connect.CodeNotFound, reasonTopicDeleted, "the topic was deleted")
		}
		a := metadata.Answer{Offset: metadata.NoOffset, Timestamp: metadata.NoTimestamp}
		var err error
		switch q := req.GetQuery().(type) {
		case *varvev1.ListOffsetsRequest_AtOrAfter:
			a, err = v.AtOrAfter(ctx, g.reader.index, g.reader.scan, q.AtOrAfter)
		case *varvev1.ListOffsetsRequest_Before:
			a, err = v.Before(ctx, g.reader.index, g.reader.scan, q.Before)
		case *varvev1.ListOffsetsRequest_MaxTimestamp:
			a, err = v.MaxTimestamp(ctx, g.reader.index, g.reader.scan)
		case *varvev1.ListOffsetsRequest_Earliest:
			a = metadata.Answer{Found: true, Offset: v.Start, Timestamp: metadata.NoTimestamp}
			if v.Next > v.Start { // dated by its record
				a, err = v.AtOrAfter(ctx, g.reader.index, g.reader.scan, 0)
			}
		default:
			a = metadata.Answer{Found: true, Offset: v.Next, Timestamp: metadata.NoTimestamp}
		}
		out = &varvev1.PartitionOffset{Partition: id.Number, Found: a.Found, Offset: a.Offset, Timestamp: a.Timestamp, StartOffset: v.Start, EndOffset: v.Next}
		return err
	})
	return out, err
}

// withView runs a read on the partition's newest view, and again on a newer one when
// the index moved under it, or named an object that is gone: merging puts others in its place.
func (g *Gateway) withView(ctx context.Context, id metadata.PartitionID, read func(*metadata.View) error) error {
	return g.withViewOf(ctx, id, g.view, read)
}

func (g *Gateway) withViewOf(ctx context.Context, id metadata.PartitionID, view viewer, read func(*metadata.View) error) error {
	gone := ""
	for try := 0; ; try++ {
		v, err := view(ctx, id)
		if err != nil {
			return err
		}
		err = read(v)
		var missing *missingObject
		switch {
		case try == 8:
			return err
		case errors.Is(err, metadata.ErrIndexMoved):
		case errors.As(err, &missing) && missing.key != gone:
			gone = missing.key // if the newest index names it too, it is lost
		default:
			return err
		}
		view = g.viewNow // what is gone from the index is gone from the newest view of it
	}
}

// viewSince is a view that shows at least what some gateway has shown: up to the high
// watermark seen.
func (g *Gateway) viewSince(ctx context.Context, id metadata.PartitionID, seen int64) (*metadata.View, error) {
	v, err := g.view(ctx, id)
	if err != nil || v.Next >= seen {
		return v, err
	}
	if v, err = g.viewNow(ctx, id); err == nil && v.Next < seen && !v.Closed {
		return nil, refuse(connect.CodeUnavailable, reasonBehind, "a high watermark of %d was seen, but the log ends at %d here: ask another gateway, or again in a moment; "+
			"if it stays so, the table was rolled back", seen, v.Next).withRetriable()
	}
	return v, err
}

// Fence implements varvev1connect.LogServiceHandler.
func (s *logService) Fence(ctx context.Context, req *varvev1.FenceRequest) (*varvev1.FenceResponse, error) {
	if len(req.GetToken()) > segments.MaxFencingToken {
		return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "a fencing token of %d bytes is longer than %d", len(req.GetToken()), segments.MaxFencingToken)
	}
	if req.ExpectedOffset != nil && req.GetExpectedOffset() < 0 {
		return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "expected_offset %d is negative", req.GetExpectedOffset())
	}
	return onTopic(ctx, s.g, req.GetTopic(), s.g.topic, func(t *metadata.Topic) (*varvev1.FenceResponse, error) {
		id, err := partitionOf(t, req.GetPartition())
		if err != nil {
			return nil, err
		}
		v, err := s.g.router.decide(ctx, id, decision{fence: &fencing{req.GetToken(), req.CurrentToken, req.ExpectedOffset}})
		if err != nil {
			return nil, placed(fenceRefused(err, req), t.Name, id.Number)
		}
		return &varvev1.FenceResponse{Token: req.GetToken(), NextOffset: v.Next}, nil
	})
}

// fenceRefused says in the words of the API why a token was not set.
func fenceRefused(err error, req *varvev1.FenceRequest) error {
	var conflict *metadata.FenceConflict
	switch {
	case !errors.As(err, &conflict):
		return err
	case req.CurrentToken != nil && conflict.Token != req.GetCurrentToken():
		return refuse(connect.CodeAborted, reasonFenceMismatch, "the fencing token is not %q, so it was not set", req.GetCurrentToken()).withLog(metadata.NoOffset, conflict.Next)
	}
	return refuse(connect.CodeFailedPrecondition, reasonOffsetMismatch, "expected offset %d, but the next offset is %d: the token was not set",
		req.GetExpectedOffset(), conflict.Next).withOffsets(req.GetExpectedOffset(), conflict.Next)
}
