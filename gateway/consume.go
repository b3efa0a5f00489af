package gateway

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments/batch"
)

// resolve turns a place into an offset, as of the view. It may lie outside the log
// when it is given as an offset.
func (g *Gateway) resolve(ctx context.Context, v *metadata.View, place *varvev1.Place) (int64, error) {
	switch at := place.GetAt().(type) {
	case *varvev1.Place_Offset:
		return at.Offset, nil
	case *varvev1.Place_Time:
		a, err := v.AtOrAfter(bill.ForTopic(ctx, v.Partition.Topic), g.reader.index, g.reader.scan, at.Time)
		if err != nil || !a.Found {
			return v.Next, err
		}
		return a.Offset, nil
	case *varvev1.Place_Latest:
		return v.Next, nil
	case *varvev1.Place_BeforeEnd:
		if at.BeforeEnd < 0 {
			return 0, refuse(connect.CodeInvalidArgument, reasonInvalid, "before_end %d is negative", at.BeforeEnd)
		}
		return max(v.Start, v.Next-at.BeforeEnd), nil
	}
	return v.Start, nil
}

// position is how far a reader of one partition has come.
type position struct {
	partition *partition
	start     int64 // the offset that was asked for
	next      int64
	end       int64 // exclusive; math.MaxInt64 to follow
	told      bool  // the reader knows where it begins
	done      bool
	caughtUp  bool // it had come to the end
	ahead     readAhead
	view      *metadata.View // what it reads by, while it goes through old data; nil: it does not
	at        segmentName    // where the last of what was read lies
	passed    int            // turns in which others went before it
}

// viewer gets a partition's view.
type viewer = func(context.Context, metadata.PartitionID) (*metadata.View, error)

// viewFor is what a reader is to see at first: the newest there is, or at least what it saw.
func (g *Gateway) viewFor(linearizable bool, seen int64) viewer {
	if linearizable {
		return g.viewNow
	}
	return func(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
		return g.viewSince(ctx, id, seen)
	}
}

// place resolves where a reader begins and ends. An offset outside the log is OutOfRange.
func (g *Gateway) place(ctx context.Context, t *metadata.Topic, number int32, start, end *varvev1.Place, view viewer) (*position, error) {
	id, err := partitionOf(t, number)
	if err != nil {
		return nil, err
	}
	pos := &position{partition: g.partitions.get(id), end: math.MaxInt64}
	err = g.withViewOf(ctx, id, view, func(v *metadata.View) (err error) {
		if v.Closed {
			return refuse(connect.CodeNotFound, reasonTopicDeleted, "the topic was deleted")
		}
		if pos.start, err = g.resolve(ctx, v, start); err != nil {
			return err
		}
		if end.GetAt() != nil {
			if pos.end, err = g.resolve(ctx, v, end); err != nil {
				return err
			}
		}
		if pos.start > v.Next { // before that is said, make sure that it is so
			if v, err = g.viewNow(ctx, id); err != nil {
				return err
			}
		}
		return inRange(v, pos.start)
	})
	pos.next = pos.start
	if err != nil {
		return nil, placed(err, t.Name, number)
	}
	return pos, nil
}

// inRange refuses an offset that is not, or not yet, part of the log.
func inRange(v *metadata.View, offset int64) error {
	switch {
	case offset < v.Start:
		return refuse(connect.CodeOutOfRange, reasonOutOfRange, "offset %d is below the log start %d", offset, v.Start).withLog(v.Start, v.Next)
	case offset > v.Next:
		return refuse(connect.CodeOutOfRange, reasonOutOfRange, "offset %d is past the end: the next record gets offset %d", offset, v.Next).withLog(v.Start, v.Next)
	}
	return nil
}

// Consume implements varvev1connect.LogServiceHandler.
func (s *logService) Consume(ctx context.Context, req *varvev1.ConsumeRequest, stream varvev1connect.LogServiceConsumeServerStream) error {
	c, err := onTopic(ctx, s.g, req.GetTopic(), s.g.topic, func(t *metadata.Topic) (*consumer, error) { return s.consumer(ctx, t, req) })
	if err != nil {
		return err
	}
	c.send = stream.Send
	for _, pos := range c.positions {
		defer pos.partition.subscribe(wakeUp(c.wake))()
	}
	s.g.meters.followers(1)
	defer s.g.meters.followers(-1)
	ctx, cancel := context.WithCancel(ctx)
	defer c.end()
	defer cancel()
	return c.run(ctx, nil)
}

// consumer resolves where a Consume begins and ends.
func (s *logService) consumer(ctx context.Context, t *metadata.Topic, req *varvev1.ConsumeRequest) (*consumer, error) {
	c := &consumer{g: s.g, tenure: s.g.tenure.Load(), topic: t, decode: req.GetDecode(),
		maxBytes: clampBytes(req.GetMaxMessageBytes(), s.g.config.MaxMessageBytes), wake: make(chan struct{}, 1), follows: true}
	var err error
	if c.times, err = timesOf(req.TimeRange); err != nil {
		return nil, err
	}
	// HTTP writes a message out before Send returns; in process the client gets it later.
	_, c.reuse = connecthttp.ServerInfoForContext(ctx)
	ranges := req.GetPartitions()
	if len(ranges) == 0 {
		for i := range t.Partitions {
			ranges = append(ranges, &varvev1.PartitionRange{Partition: i})
		}
	}
	asked := make(map[int32]bool, len(ranges))
	for _, r := range ranges {
		if asked[r.GetPartition()] {
			return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "partition %d is asked for twice", r.GetPartition())
		}
		asked[r.GetPartition()] = true
		pos, err := s.g.place(ctx, t, r.GetPartition(), r.GetStart(), r.GetEnd(), s.g.viewFor(false, r.GetSeenHighWatermark()))
		if err != nil {
			return nil, err
		}
		c.positions = append(c.positions, pos)
	}
	return c, nil
}

func timesOf(r *varvev1.TimeRange) (*timeRange, error) {
	if r == nil {
		return nil, nil
	}
	if r.GetEnd() < r.GetStart() {
		return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "the time range ends (%d) before it starts (%d)", r.GetEnd(), r.GetStart())
	}
	return &timeRange{r.GetStart(), r.GetEnd()}, nil
}

func clampBytes(asked int32, limit int) int {
	if asked <= 0 {
		return min(defaultReadBytes, limit)
	}
	return min(int(asked), limit)
}

// consumer is one Consume stream.
type consumer struct {
	g         *Gateway
	tenure    *tenure // it ends with
	topic     *metadata.Topic
	positions []*position
	times     *timeRange
	maxBytes  int
	decode    bool
	// reuse: what send was given is no longer used when it returns.
	reuse bool
	send  func(*varvev1.ConsumeResponse) error
	wake  chan struct{}
	// aheads are reads of what is wanted next. A Fetch has none: it ends with its message.
	follows bool
	aheads  sync.WaitGroup
	ahead   chan struct{} // closed when what was begun last is there; nil: nothing was
	// goingThrough is how many partitions of it go through old data.
	goingThrough int
	dense        density
	oldest       map[metadata.GatewayID]uint64
}

// end waits for what was read ahead. Its context has ended.
func (c *consumer) end() {
	c.aheads.Wait()
	for _, p := range c.positions {
		c.endAhead(p)
	}
}

// run sends what there is, partition by partition in turn, and sleeps until a commit
// wakes it. It ends when each partition has reached its end, when it has waited
// enough, or the gateway leaves.
func (c *consumer) run(ctx context.Context, enough <-chan time.Time) error {
	for {
		select {
		case <-c.tenure.over:
			return c.tenure.ended()
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		sent, open := false, false
		c.order()
		for _, p := range c.positions {
			if p.done {
				continue
			}
			if c.passes(p) {
				sent, open = true, true
				continue
			}
			more, err := c.advance(ctx, p)
			if err != nil {
				return placed(err, c.topic.Name, p.partition.id.Number)
			}
			sent = sent || more
			open = open || !p.done
		}
		switch {
		case !open:
			return nil
		case sent:
			select {
			case <-enough: // a filter lets little through
				return nil
			default:
				continue
			}
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.tenure.over:
			return c.tenure.ended()
		case <-enough:
			return nil
		}
	}
}

// advance sends the next message of a partition, if there is anything to say.
func (c *consumer) advance(ctx context.Context, p *position) (sent bool, err error) {
	var data []byte
	var next int64
	var at segmentName
	var view *metadata.View
	room := c.g.reader.room
	m := &message{room: room, reuse: c.reuse}
	defer m.leave()
	p.passed = 0
	c.settle(p)
	err = c.g.withView(ctx, p.partition.id, func(v *metadata.View) (err error) {
		if view = v; v.Closed {
			return refuse(connect.CodeNotFound, reasonTopicDeleted, "the topic was deleted")
		}
		if err := inRange(v, p.next); err != nil {
			return err
		}
		data, next, at, err = c.g.reader.read(ctx, v, filter{from: p.next, until: p.end, times: c.times}, room.share(c.maxBytes), m)
		return err
	})
	if err != nil {
		return false, err
	}
	p.done = next >= p.end
	if next == p.next && p.told && !p.done {
		return false, nil
	}
	out := &varvev1.ConsumeResponse{Partition: p.partition.id.Number, RecordBatches: data, NextOffset: next,
		LogStartOffset: view.Start, HighWatermark: view.Next, End: p.done, StartOffset: p.start}
	if c.decode {
		var read int64
		if out.Records, read, err = decodeRecords(data, filter{p.next, p.end, c.times}, decodedTimes*c.maxBytes); err != nil {
			return false, err
		}
		if read != 0 { // what inflates to more comes in the next message
			next, out.NextOffset = read, read
			p.done, out.End = false, false
		}
		out.RecordBatches = nil
	}
	c.readAhead(ctx, p, view, next)
	p.next, p.told = next, true
	if at != (segmentName{}) {
		p.at = at
	}
	return true, c.send(out)
}

const (
	// decodedTimes is how many times the bytes of a message its decoded records may take.
	decodedTimes = 4
	// decodedBytes is what a decoded record or header takes beside its key and value:
	// batches of empty ones inflate most.
	decodedBytes = 32
)

// decodeRecords gives the records of batches one by one, those that were asked for. After
// a batch with which they take more than limit bytes it stops, and says at which
// offset to go on; 0 when all were decoded.
func decodeRecords(data []byte, f filter, limit int) (out []*varvev1.ReadRecord, next int64, err error) {
	for b, err := range batch.Split(data) {
		if err != nil {
			return nil, 0, err
		}
		h, err := batch.ParseHeader(b)
		if err != nil {
			return nil, 0, err
		}
		if limit <= 0 {
			return out, h.BaseOffset, nil
		}
		for r, err := range batch.Records(b, storedLimits) {
			if err != nil {
				return nil, 0, err
			}
			limit -= decodedBytes + len(r.Key) + len(r.Value)
			for _, h := range r.Headers {
				limit -= decodedBytes + len(h.Key) + len(h.Value)
			}
			if r.Offset < f.from || r.Offset >= f.until || f.times != nil && (r.Timestamp < f.times.start || r.Timestamp >= f.times.end) {
				continue
			}
			record := &varvev1.ReadRecord{Offset: r.Offset, Timestamp: r.Timestamp, Key: r.Key, Value: r.Value}
			for _, h := range r.Headers {
				record.Headers = append(record.Headers, &varvev1.Header{Key: h.Key, Value: h.Value})
			}
			out = append(out, record)
		}
	}
	return out, 0, nil
}

// Fetch implements varvev1connect.LogServiceHandler.
func (s *logService) Fetch(ctx context.Context, req *varvev1.FetchRequest) (*varvev1.FetchResponse, error) {
	return onTopic(ctx, s.g, req.GetTopic(), s.g.topic, func(t *metadata.Topic) (*varvev1.FetchResponse, error) { return s.fetch(ctx, t, req) })
}

func (s *logService) fetch(ctx context.Context, t *metadata.Topic, req *varvev1.FetchRequest) (*varvev1.FetchResponse, error) {
	if req.GetMaxWaitMs() < 0 {
		return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "max_wait_ms %d is negative", req.GetMaxWaitMs())
	}
	times, err := timesOf(req.TimeRange)
	if err != nil {
		return nil, err
	}
	pos, err := s.g.place(ctx, t, req.GetPartition(), req.GetStart(), nil, s.g.viewFor(req.GetLinearizable(), req.GetSeenHighWatermark()))
	if err != nil {
		return nil, err
	}
	var out *varvev1.FetchResponse
	c := &consumer{g: s.g, tenure: s.g.tenure.Load(), topic: t, positions: []*position{pos}, times: times, decode: req.GetDecode(),
		maxBytes: clampBytes(req.GetMaxBytes(), s.g.config.MaxMessageBytes), wake: make(chan struct{}, 1)}
	c.send = func(m *varvev1.ConsumeResponse) error {
		out = &varvev1.FetchResponse{RecordBatches: m.GetRecordBatches(), Records: m.GetRecords(), NextOffset: m.GetNextOffset(),
			LogStartOffset: m.GetLogStartOffset(), HighWatermark: m.GetHighWatermark(), StartOffset: m.GetStartOffset(), Linearizable: req.GetLinearizable()}
		if len(out.RecordBatches) > 0 || len(out.Records) > 0 {
			return errFetched
		}
		return nil
	}
	defer pos.partition.subscribe(wakeUp(c.wake))()
	if req.GetMaxWaitMs() == 0 {
		if _, err := c.advance(ctx, pos); err != nil && !errors.Is(err, errFetched) {
			return nil, placed(err, t.Name, req.GetPartition())
		}
		return out, nil
	}
	enough := time.NewTimer(min(time.Duration(req.GetMaxWaitMs())*time.Millisecond, maxWait))
	defer enough.Stop()
	if err := c.run(ctx, enough.C); err != nil && !errors.Is(err, errFetched) {
		return nil, err
	}
	return out, nil
}

// errFetched ends the wait of a Fetch that has data.
var errFetched = errors.New("fetched")
