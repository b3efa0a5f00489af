package gateway

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	peerv1 "github.com/varvelog/varve/api/varve/peer/v1"
	"github.com/varvelog/varve/api/varve/peer/v1/peerv1connect"
	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// peerService is what this gateway does for others.
type peerService struct{ g *Gateway }

// PeerServer has the service for other gateways.
func (g *Gateway) PeerServer() *connect.Server {
	server := connect.NewServer(g.intercept)
	peerv1connect.RegisterPeerServiceHandler(server, &peerService{g})
	return server
}

// ofPeers says whether a call is to the peer service, whose check knows when it may be served.
func ofPeers(spec connect.Spec) bool {
	return strings.HasPrefix(spec.Procedure, "/"+peerv1connect.PeerServiceName+"/")
}

// check refuses calls that are not for this gateway: addresses are used again, tables
// mixed up, versions old. While it starts, only its own call of its address is answered.
func (s *peerService) check(c *peerv1.Call) error {
	own := s.g.ID()
	if c.GetFrom() != string(own) {
		if err := s.g.serving(); err != nil {
			return err
		}
	}
	switch {
	case c.GetClusterId() != s.g.ClusterID():
		return refuse(connect.CodeFailedPrecondition, reasonWrongPeer, "this gateway is of cluster %s, the call is for cluster %q: give both the same --metadata, or other addresses",
			s.g.ClusterID(), c.GetClusterId())
	case c.GetProtocol() != peerProtocol:
		return refuse(connect.CodeFailedPrecondition, reasonWrongPeer, "this gateway speaks version %d to its peers, the call is in version %d: run the same version of varve on both",
			peerProtocol, c.GetProtocol())
	case c.GetTo() != string(own):
		return refuse(connect.CodeFailedPrecondition, reasonWrongPeer, "this is gateway %s, the call is for %q: its address is used by this one now (should both run, give each an --advertise of its own)", own, c.GetTo())
	}
	return nil
}

// Refer implements peerv1connect.PeerServiceHandler.
func (s *peerService) Refer(ctx context.Context, r *peerv1.ReferRequest) (*peerv1.ReferResponse, error) {
	if err := s.check(r.GetCall()); err != nil {
		return nil, err
	}
	references, err := metadata.DecodeReferences(r.GetReferences())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err.Error())
	}
	if err := s.meet(ctx, references); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, peerWait)
	defer cancel()
	answers := make(chan indexed, len(references))
	sequencer := s.g.tenure.Load().sequencer
	if err := sequencer.stuck(); err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err.Error())
	}
	tickets := make([]*ticket, len(references))
	for i, ref := range references {
		tickets[i] = sequencer.refer(ref, ctx.Done(), func(v metadata.Verdict, err error) {
			answers <- indexed{index: i, referred: referred{v, err}}
		})
	}
	sequencer.submit(tickets...)
	out := &peerv1.ReferResponse{Results: make([]*peerv1.ReferResult, len(references))}
	for range references {
		select {
		case a := <-answers:
			out.Results[a.index] = &peerv1.ReferResult{}
			if a.err != nil {
				out.Results[a.index].Refusal = refusalMessage(a.err)
			} else {
				out.Results[a.index].Verdict = metadata.EncodeVerdict(a.verdict)
			}
			continue
		case <-ctx.Done():
		}
		break
	}
	for i, result := range out.Results {
		if result == nil { // it will be judged yet, or is dropped; whoever asks again is told
			out.Results[i] = &peerv1.ReferResult{Refusal: &peerv1.Refusal{Kind: peerv1.Refusal_KIND_BUSY, Message: "it waits for what comes before it"}}
		}
	}
	return out, nil
}

// meet sees to it that uploaders that began only now are known.
func (s *peerService) meet(ctx context.Context, references []*metadata.Reference) error {
	for _, ref := range references {
		if !s.g.members.knows(ref.Uploader) {
			return s.g.members.refresh(ctx)
		}
	}
	return nil
}

// Acknowledge implements peerv1connect.PeerServiceHandler.
func (s *peerService) Acknowledge(ctx context.Context, r *peerv1.AcknowledgeRequest) (*peerv1.AcknowledgeResponse, error) {
	if err := s.check(r.GetCall()); err != nil {
		return nil, err
	}
	if err := s.g.tenure.Load().acknowledge(ctx); err != nil {
		return nil, err
	}
	return &peerv1.AcknowledgeResponse{}, nil
}

// Decide implements peerv1connect.PeerServiceHandler.
func (s *peerService) Decide(ctx context.Context, r *peerv1.DecideRequest) (*peerv1.DecideResponse, error) {
	if err := s.check(r.GetCall()); err != nil {
		return nil, err
	}
	id, err := partitionOfMessage(r.GetPartition())
	if err != nil {
		return nil, err
	}
	d, err := decisionOf(id, r)
	if err != nil {
		return nil, err
	}
	v, err := s.g.tenure.Load().sequencer.decide(ctx, id, d)
	if err != nil {
		return &peerv1.DecideResponse{Refusal: refusalMessage(err)}, nil
	}
	if d.swap != nil { // it asked for no view, which may be large
		return &peerv1.DecideResponse{SwapOutcome: uint32(d.swap.outcome)}, nil
	}
	return &peerv1.DecideResponse{View: v.Encode()}, nil
}

// Read implements peerv1connect.PeerServiceHandler.
func (s *peerService) Read(ctx context.Context, r *peerv1.ReadRequest) (*peerv1.ReadResponse, error) {
	if err := s.check(r.GetCall()); err != nil {
		return nil, err
	}
	id, err := partitionOfMessage(r.GetPartition())
	if err != nil {
		return nil, err
	}
	v, err := s.g.readHere(ctx, id)
	if err != nil {
		return &peerv1.ReadResponse{Refusal: refusalMessage(err)}, nil
	}
	return &peerv1.ReadResponse{View: v.Encode()}, nil
}

// Take implements peerv1connect.PeerServiceHandler.
func (s *peerService) Take(_ context.Context, r *peerv1.TakeRequest) (*peerv1.TakeResponse, error) {
	if err := s.check(r.GetCall()); err != nil {
		return nil, err
	}
	var tickets []*ticket
	for _, m := range r.GetPartitions() {
		id, err := partitionOfMessage(m)
		if err != nil {
			return nil, err
		}
		s.g.router.learn(id, "")                                                                 // wherever it was
		tickets = append(tickets, &ticket{partition: id, done: func(metadata.Verdict, error) {}, // whoever needs it asks again
			decide: func(*metadata.Partition) (metadata.Verdict, *metadata.Change, error) {
				return metadata.Verdict{Status: metadata.Judged}, nil, nil
			}})
	}
	s.g.tenure.Load().sequencer.submit(tickets...)
	return &peerv1.TakeResponse{}, nil
}

// ReadBlock implements peerv1connect.PeerServiceHandler. Whatever goes wrong, who asks reads from the bucket then.
func (s *peerService) ReadBlock(ctx context.Context, r *peerv1.ReadBlockRequest) (*peerv1.ReadBlockResponse, error) {
	if err := s.check(r.GetCall()); err != nil {
		return nil, err
	}
	if zone := s.g.config.Zone; zone == "" || r.GetZone() != zone {
		return nil, refuse(connect.CodeFailedPrecondition, reasonWrongPeer, "this gateway is of zone %q, the call comes from zone %q: records do not travel between zones", zone, r.GetZone())
	}
	if err := segments.GatewayID(r.GetGateway()).Validate(); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err.Error())
	}
	if r.GetOffset() < 0 || r.GetLength() <= 0 || r.GetLength() > fetchBytes {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "that is no range: %d bytes at %d", r.GetLength(), r.GetOffset())
	}
	data, err := s.g.reader.blocks.lend(ctx, segmentName{metadata.GatewayID(r.GetGateway()), r.GetNumber()}, r.GetOffset(), int(r.GetLength()))
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err.Error())
	}
	s.g.meters.blocksLent.Add(1)
	s.g.meters.blockBytesLent.Add(uint64(len(data)))
	return &peerv1.ReadBlockResponse{Data: data}, nil
}

// Watch implements peerv1connect.PeerServiceHandler.
func (s *peerService) Watch(ctx context.Context, stream peerv1connect.PeerServiceWatchServerStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	if err := s.check(first.GetCall()); err != nil {
		return err
	}
	w := &watcher{g: s.g, told: make(map[*partition]*telling), wake: make(chan struct{}, 1), reads: make(chan struct{}, tableReadsAtOnce)}
	defer w.stop()
	t := s.g.tenure.Load()
	asked := make(chan *peerv1.WatchRequest)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for request := first; ; {
			select {
			case asked <- request:
			case <-ctx.Done():
				return
			}
			if request, err = stream.Receive(); err != nil {
				ended <- err
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.over:
			return errDraining
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case request := <-asked:
			if err := w.ask(request); err != nil {
				return err
			}
		case <-w.wake:
		}
		if updates := w.updates(ctx); len(updates) > 0 {
			if err := stream.Send(&peerv1.WatchResponse{Updates: updates}); err != nil {
				return err
			}
		}
	}
}

// watcher is what another gateway wants to hear about.
type watcher struct {
	g     *Gateway
	told  map[*partition]*telling
	wake  chan struct{}
	reads chan struct{} // limits those of the table

	mu    sync.Mutex
	dirty []*partition
}

// telling is what it has heard about one partition.
type telling struct {
	view   *metadata.View
	cancel func()
	read   bool // the table was asked
}

// changed implements waiter.
func (w *watcher) changed(p *partition) {
	w.mu.Lock()
	w.dirty = append(w.dirty, p)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// remote implements waiter.
func (w *watcher) remote() bool { return true }

func (w *watcher) ask(r *peerv1.WatchRequest) error {
	// A partition in both has come back: it is to be told of.
	for _, m := range r.GetEnd() {
		id, err := partitionOfMessage(m)
		if err != nil {
			return err
		}
		w.end(w.g.partitions.get(id))
	}
	for _, m := range r.GetBegin() {
		id, err := partitionOfMessage(m.GetPartition())
		if err != nil {
			return err
		}
		p := w.g.partitions.get(id)
		if t := w.told[p]; t != nil {
			t.view, t.read = nil, false // it wants to hear all of it again
		} else {
			w.told[p] = &telling{cancel: p.subscribe(w)}
		}
		w.changed(p)
	}
	return nil
}

func (w *watcher) end(p *partition) {
	if t := w.told[p]; t != nil {
		t.cancel()
		delete(w.told, p)
	}
}

func (w *watcher) stop() {
	for p := range w.told {
		w.end(p)
	}
}

// updates says what is new about the partitions that changed.
func (w *watcher) updates(ctx context.Context) []*peerv1.Update {
	w.mu.Lock()
	dirty := w.dirty
	w.dirty = nil
	w.mu.Unlock()
	var updates []*peerv1.Update
	seen := make(map[*partition]bool, len(dirty))
	for _, p := range dirty {
		if t := w.told[p]; t != nil && !seen[p] {
			seen[p] = true
			if u := w.update(ctx, p, t); u != nil {
				updates = append(updates, u)
			}
		}
	}
	return updates
}

// update says what is new about one; nil when nothing is, or when that has to be read first.
func (w *watcher) update(ctx context.Context, p *partition, t *telling) *peerv1.Update {
	if !p.owned.Load() && t.view == nil && !t.read && w.g.shouldKnow(p.id) {
		t.read = true
		go w.read(ctx, p) // the others' news do not wait for the table
		return nil
	}
	v, err := w.g.viewHere(ctx, p)
	u := &peerv1.Update{Partition: partitionMessage(p.id)}
	switch {
	case err != nil:
		u.Refusal = refusalMessage(err)
		w.end(p)
		return u
	case t.view == v:
		return nil
	case t.view != nil:
		if delta, ok := v.Since(t.view); ok {
			u.Delta = delta
			break
		}
		fallthrough
	default:
		u.View = v.Encode()
	}
	t.view = v
	w.g.meters.peerBytes.Add(uint64(len(u.View) + len(u.Delta)))
	return u
}

// read reads a partition from the table, which then is remembered for a moment.
func (w *watcher) read(ctx context.Context, p *partition) {
	select {
	case w.reads <- struct{}{}:
		defer func() { <-w.reads }()
	case <-ctx.Done():
		return
	}
	if _, err := w.g.mirrors.fromTable(ctx, p); err != nil && ctx.Err() == nil {
		w.g.log.Debug("partition not read for another gateway", "partition", p.id.String(), "error", err)
	}
	w.changed(p)
}

// viewHere is what readers see of a partition that is, or should be, sequenced here;
// [elsewhere] when it is not.
func (g *Gateway) viewHere(ctx context.Context, p *partition) (*metadata.View, error) {
	if p.owned.Load() {
		return p.view.Load(), nil
	}
	if to := g.router.route(p.id); to != g.ID() {
		return nil, &elsewhere{to}
	}
	return g.mirrors.fromTable(ctx, p)
}

// readHere is what readers see of a partition as of a moment after the call: by its
// sequencer, which makes sure that nobody has taken over, or from the table while it has none.
func (g *Gateway) readHere(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	p := g.partitions.get(id)
	if p.owned.Load() {
		err := g.tenure.Load().sequencer.confirm(ctx, id)
		if err == nil || seeded.Has(seeded.StaleConfirm) {
			return p.view.Load(), nil
		}
		var held *elsewhere
		if !errors.As(err, &held) && !errors.Is(err, metadata.ErrFenced) {
			return nil, err
		}
	}
	if !g.shouldKnow(id) {
		return nil, &elsewhere{g.router.route(id)}
	}
	return g.latest.read(ctx, id)
}

// shouldKnow says whether a partition that this gateway does not sequence is its own to tell about.
// What it remembers of where the partition was does not count then: it may be old, and whoever it
// names may send those who ask back here.
func (g *Gateway) shouldKnow(id metadata.PartitionID) bool {
	to := g.router.route(id)
	if winner := g.members.winner(id); to != g.ID() && (winner == "" || winner == g.ID()) {
		g.router.learn(id, "")
		g.mirrors.doubt(g.partitions.get(id)) // what was read of it while it was elsewhere does not count
		return true
	}
	return to == g.ID()
}

// confirm returns once it is sure that no other gateway had taken over from this one when it
// was called: what it shows of the partition is then the truth. All who wait share one read.
func (s *sequencer) confirm(ctx context.Context, id metadata.PartitionID) error {
	return s.ask(ctx, id, func(*metadata.Partition) (*metadata.Change, error) { return nil, nil })
}

// mirrorLinger is for how long another gateway tells of a partition that nobody here reads.
const mirrorLinger = 30 * time.Second
