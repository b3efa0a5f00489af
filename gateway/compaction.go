package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	peerv1 "github.com/varvelog/varve/api/varve/peer/v1"
	"github.com/varvelog/varve/api/varve/peer/v1/peerv1connect"
	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/metadata"
)

const (
	// mergeBlock is how many neighbouring partitions of a topic one gateway merges: their spans lie side by side
	// in segments, and are read together.
	mergeBlock = 64
	// noteAfter and noteBytes say when commits are noted to whoever merges: so long after the first one, or
	// when a partition has so many bytes.
	noteAfter = 30 * time.Second
	noteBytes = 16 << 20
	// notePause is the least time between two notes.
	notePause = time.Second
)

// Compactor is what merges small segments beside a gateway: see package compactor.
type Compactor interface {
	// Note tells that a partition ends at next, after bytes of batches more were committed. It must not block.
	Note(id metadata.PartitionID, next, bytes int64)
	// Compact has one pass made now, over a topic or all ("").
	Compact(ctx context.Context, topic string, dryRun bool) (*varvev1.CompactReport, error)
}

// compaction is what a gateway has to do with merging.
type compaction struct {
	g         *Gateway
	compactor Compactor // nil: it does not merge
	floor     atomic.Pointer[mergeFloor]

	mu    sync.Mutex
	noted map[metadata.PartitionID]committed // not told yet
	first time.Time                          // when the first of them was
	large bool                               // one of them has many bytes
	told  time.Time                          // when some were told last
	wake  chan struct{}
}

// committed is what was committed to a partition.
type committed struct{ next, bytes int64 }

// mergeFloor is the floor of a gateway's id as a compactor.
type mergeFloor struct {
	gateway metadata.GatewayID
	number  uint64
}

func newCompaction(g *Gateway) *compaction {
	return &compaction{g: g, noted: make(map[metadata.PartitionID]committed), wake: make(chan struct{}, 1)}
}

// UseCompactor says what merges beside this gateway. Call it before Run.
func (g *Gateway) UseCompactor(c Compactor) { g.compaction.compactor = c }

// Topics lists the topics that are not being deleted.
func (g *Gateway) Topics(ctx context.Context) ([]*metadata.Topic, error) {
	list, err := g.topics.List(ctx, "", "", 0)
	if err != nil {
		return nil, err
	}
	active := list[:0]
	for _, t := range list {
		if t.State == metadata.TopicActive {
			active = append(active, t)
		}
	}
	return active, nil
}

// Merges says whether a partition is this gateway's to merge.
func (g *Gateway) Merges(id metadata.PartitionID) bool { return g.members.merger(id) == g.ID() }

// MergeView is what readers may see of a partition, for a compactor: without keeping in mind those that nobody uses.
func (g *Gateway) MergeView(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	if p := g.partitions.peek(id); p != nil && p.owned.Load() {
		if v := p.view.Load(); v != nil {
			return v, nil
		}
	}
	lease, err := metadata.ReadLease(ctx, g.table, id, metadata.Strong)
	switch {
	case errors.Is(err, metadata.ErrNotFound):
		return metadata.NewPartition(id).View(), nil
	case err != nil:
		return nil, err
	case lease.Released:
		return lease.View(), nil
	}
	return g.viewNow(ctx, id)
}

// SetMergeFloor has the next heartbeat say that each number below floor that gateway's id as a compactor used is settled.
func (g *Gateway) SetMergeFloor(gateway metadata.GatewayID, floor uint64) {
	g.compaction.floor.Store(&mergeFloor{gateway, floor})
}

// mergeFloor is what the row of a tenure says.
func (t *tenure) mergeFloor() uint64 {
	if f := t.g.compaction.floor.Load(); f != nil && f.gateway == t.id {
		return f.number
	}
	return 1
}

// merger is the gateway that merges a partition; "" when none does.
func (m *members) merger(id metadata.PartitionID) metadata.GatewayID {
	m.mu.Lock()
	merging := m.merging // never changed, only replaced
	m.mu.Unlock()
	return mergerOf(id, merging)
}

func mergerOf(id metadata.PartitionID, among []metadata.GatewayID) metadata.GatewayID {
	id.Number -= id.Number % mergeBlock
	return metadata.Rendezvous(id, among)
}

// mergers lists the gateways that merge.
func (m *members) mergers() []metadata.GatewayID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.merging
}

// committed notes what a cycle added to a partition: the entries from the old end on.
func (c *compaction) committed(id metadata.PartitionID, from int64, v *metadata.View) {
	if v.Next == from || c.compactor == nil && c.g.config.Exclusive {
		return
	}
	bytes := int64(0)
	for i := len(v.Tail) - 1; i >= 0 && v.Tail[i].First >= from; i-- {
		bytes += v.Tail[i].Length
	}
	c.mu.Lock()
	if len(c.noted) == 0 {
		c.first = time.Now()
	}
	fresh := len(c.noted) == 0
	bytes += c.noted[id].bytes
	c.noted[id] = committed{v.Next, bytes}
	grown := bytes >= noteBytes && !c.large
	c.large = c.large || grown
	c.mu.Unlock()
	if fresh || grown {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// run tells those who merge what was committed, until ctx ends. Where nothing is, no timer runs.
func (c *compaction) run(ctx context.Context) error {
	var timer <-chan time.Time
	merging := c.g.members.mergers()
	for {
		changed := c.g.members.watch()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.wake:
		case <-timer:
		case <-changed:
			now := c.g.members.mergers()
			c.inherit(merging, now)
			merging = now
		}
		timer = nil
		switch wait := c.due(); {
		case wait > 0:
			timer = time.After(wait)
		case wait == 0:
			c.tell(ctx)
			if c.due() >= 0 {
				timer = time.After(noteAfter)
			}
		}
	}
}

// inherit notes the partitions that this gateway sequences whose merger is another one now: what the one before kept in mind
// of them is gone.
func (c *compaction) inherit(was, now []metadata.GatewayID) {
	if slices.Equal(was, now) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.g.partitions.known() {
		v := p.view.Load()
		if v == nil || v.Next == v.Start || !p.owned.Load() || mergerOf(p.id, was) == mergerOf(p.id, now) {
			continue
		}
		if len(c.noted) == 0 {
			c.first = time.Now()
		}
		c.noted[p.id] = committed{v.Next, c.noted[p.id].bytes}
	}
}

// due is how long what is noted may wait; negative: there is nothing.
func (c *compaction) due() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.noted) == 0 {
		return -1
	}
	if c.large {
		return max(0, notePause-time.Since(c.told))
	}
	return max(0, noteAfter-time.Since(c.first))
}

// tell tells each of those who merge what is theirs. What could not be told is told later.
func (c *compaction) tell(ctx context.Context) {
	c.mu.Lock()
	noted := c.noted
	c.noted = make(map[metadata.PartitionID]committed)
	c.large, c.told = false, time.Now()
	c.mu.Unlock()
	by := make(map[metadata.GatewayID]map[metadata.PartitionID]committed)
	for id, n := range noted {
		to := c.g.members.merger(id)
		if to == "" {
			continue
		}
		if by[to] == nil {
			by[to] = make(map[metadata.PartitionID]committed)
		}
		by[to][id] = n
	}
	for to, list := range by {
		if to == c.g.ID() {
			c.take(list)
		} else if err := c.g.peers.note(ctx, to, list); err != nil {
			c.back(list)
		}
	}
}

// take notes commits to the compactor of this gateway.
func (c *compaction) take(list map[metadata.PartitionID]committed) {
	if c.compactor == nil {
		return
	}
	for id, n := range list {
		c.compactor.Note(id, n.next, n.bytes)
	}
}

// back keeps what could not be told.
func (c *compaction) back(list map[metadata.PartitionID]committed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = time.Now()
	for id, n := range list {
		has := c.noted[id]
		c.noted[id] = committed{max(n.next, has.next), n.bytes + has.bytes}
	}
}

// note tells another gateway what was committed to partitions that it merges.
func (s *peers) note(ctx context.Context, to metadata.GatewayID, list map[metadata.PartitionID]committed) error {
	request := &peerv1.NoteRequest{}
	for id, n := range list {
		request.Committed = append(request.Committed, &peerv1.Committed{Partition: partitionMessage(id), Next: n.next, Bytes: n.bytes})
	}
	return s.call(ctx, to, func(ctx context.Context, client peerv1connect.PeerServiceClient, call *peerv1.Call) error {
		request.Call = call
		_, err := client.Note(ctx, request)
		return err
	})
}

// Note implements peerv1connect.PeerServiceHandler.
func (s *peerService) Note(_ context.Context, r *peerv1.NoteRequest) (*peerv1.NoteResponse, error) {
	if err := s.check(r.GetCall()); err != nil {
		return nil, err
	}
	list := make(map[metadata.PartitionID]committed, len(r.GetCommitted()))
	for _, m := range r.GetCommitted() {
		id, err := partitionOfMessage(m.GetPartition())
		if err != nil {
			return nil, err
		}
		list[id] = committed{m.GetNext(), max(0, m.GetBytes())}
	}
	s.g.compaction.take(list)
	return &peerv1.NoteResponse{}, nil
}

// Compact implements peerv1connect.PeerServiceHandler.
func (s *peerService) Compact(ctx context.Context, r *peerv1.CompactRequest, stream peerv1connect.PeerServiceCompactServerStream) error {
	if err := s.check(r.GetCall()); err != nil {
		return err
	}
	if err := stream.SendHeaders(); err != nil {
		return err
	}
	report, err := s.g.compaction.compact(ctx, r.GetTopic(), r.GetDryRun(), r.GetWait())
	if err != nil {
		return err
	}
	encoded, err := proto.Marshal(report)
	if err != nil {
		return err
	}
	return stream.Send(&peerv1.CompactResponse{Report: encoded})
}

// compact has this gateway's compactor make a pass. Without wait it goes on when the caller is gone. It takes what is this gateway's by the
// rows as they are: going by older ones it would leave the partitions of one that has just gone to nobody.
func (c *compaction) compact(ctx context.Context, topic string, dryRun, wait bool) (*varvev1.CompactReport, error) {
	if c.compactor != nil {
		if err := c.g.members.refresh(ctx); err != nil {
			return nil, err
		}
	}
	if c.compactor == nil || !slices.Contains(c.g.members.mergers(), c.g.ID()) {
		return nil, refuse(connect.CodeFailedPrecondition, reasonInvalid, "gateway %s does not merge, or no longer", c.g.ID())
	}
	if wait {
		return c.compactor.Compact(ctx, topic, dryRun)
	}
	work := c.g.mirrors.lifetime()
	go func() {
		if _, err := c.compactor.Compact(work, topic, dryRun); err != nil && work.Err() == nil {
			c.g.log.Warn("a pass of merging that was asked for failed", "topic", topic, "error", err)
		}
	}()
	return nil, nil
}

// compact has another gateway make a pass. It may take hours.
func (s *peers) compact(ctx context.Context, to metadata.GatewayID, r *varvev1.CompactRequest) (*varvev1.CompactReport, error) {
	p, err := s.get(to)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.gone, cancel)()
	stream, err := p.client.Compact(ctx, &peerv1.CompactRequest{Call: s.introduce(to), Topic: r.GetTopic(), DryRun: r.GetDryRun(), Wait: r.GetWait()})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	message, err := stream.Receive()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	if !r.GetWait() {
		return nil, nil
	}
	report := &varvev1.CompactReport{}
	if err := proto.Unmarshal(message.GetReport(), report); err != nil {
		return nil, fmt.Errorf("%w: its report: %w", errUnreachable, err)
	}
	return report, nil
}

// Compact has all gateways that merge do so now.
func (s *clusterService) Compact(ctx context.Context, r *varvev1.CompactRequest, stream varvev1connect.ClusterServiceCompactServerStream) error {
	if r.GetTopic() != "" {
		if _, err := s.g.topic(ctx, r.GetTopic()); err != nil {
			return err
		}
	}
	if err := s.g.members.refresh(ctx); err != nil {
		return err
	}
	mergers := s.g.members.mergers()
	if len(mergers) == 0 {
		return refuse(connect.CodeFailedPrecondition, reasonInvalid, "no gateway merges: all that run were started with --role gateway; start one with --role all or compactor")
	}
	if err := stream.SendHeaders(); err != nil { // passes may take hours
		return err
	}
	answers := make(chan *varvev1.CompactResponse, len(mergers))
	for _, id := range mergers {
		go func() {
			answer := &varvev1.CompactResponse{GatewayId: string(id)}
			var err error
			if id == s.g.ID() {
				answer.Report, err = s.g.compaction.compact(ctx, r.GetTopic(), r.GetDryRun(), r.GetWait())
			} else {
				answer.Report, err = s.g.peers.compact(ctx, id, r)
			}
			if err != nil {
				answer.Error = err.Error()
			}
			answers <- answer
		}()
	}
	for range mergers {
		if err := stream.Send(<-answers); err != nil {
			return err
		}
	}
	return nil
}

// Pressed says that producers wait for two segments or more: whatever else needs processors, bucket or disk holds them up.
func (g *Gateway) Pressed() bool {
	t := g.tenure.Load()
	return t != nil && t.intake.outstanding.Load() >= 2*g.config.SegmentBytes
}
