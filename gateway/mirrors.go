package gateway

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	peerv1 "github.com/varvelog/varve/api/varve/peer/v1"
	"github.com/varvelog/varve/api/varve/peer/v1/peerv1connect"
	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
)

const (
	// firstView is how long a reader waits for another gateway to tell what it knows, before
	// the table is asked.
	firstView = 500 * time.Millisecond
	// patience is how long another gateway may take to tell of a partition at first, or to refuse:
	// it may have to ask the table.
	patience = 10 * time.Second
	// tailLimit is how long a mirrored view's tail may get, in entries, before the whole view
	// is asked for again: by then most of it has moved into pages.
	tailLimit = 1024
)

// mirrors keeps views of partitions that other gateways sequence. Those tell, on one
// stream each, of every commit as it is settled: so followers here hear of it within a
// round trip. What nobody tells is read from the table.
type mirrors struct {
	g     *Gateway
	life  context.Context
	reads singleflight.Group

	mu      sync.Mutex
	streams map[metadata.GatewayID]*mirrorStream
	running sync.WaitGroup
	ended   bool // nothing more may run
	caring  bool // for what nobody tells of
	// moved is when who lives changed last.
	moved   time.Time
	version uint64
}

// mirrorState is how one partition's view is kept up to date. Guarded by mirrors.mu.
type mirrorState struct {
	on    *mirrorStream  // nil: nobody tells
	told  *metadata.View // what it told last: the next change follows on it; nil: nothing yet
	whole int            // entries of the tail when it told all of it
	first chan struct{}  // closed when it has, or will not
	// patience ends the stream if nothing is told.
	patience *time.Timer
	// again: it is asked for in a moment.
	again bool
	// read is when the view was read from the table, and version who lived then.
	read    time.Time
	version uint64
	valid   bool
}

func newMirrors(g *Gateway) *mirrors {
	return &mirrors{g: g, life: context.Background(), streams: make(map[metadata.GatewayID]*mirrorStream)}
}

// live has streams end with ctx. Before it nothing may be asked for.
func (m *mirrors) live(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life = ctx
}

// run looks again where things are when gateways come or go, until ctx ends, and waits for the streams.
func (m *mirrors) run(ctx context.Context) error {
	defer func() {
		m.mu.Lock()
		m.ended = true
		m.mu.Unlock()
		m.running.Wait()
	}()
	for {
		changed := m.g.members.watch()
		m.reconsider()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// reconsider asks again about partitions that somebody waits for, where another gateway
// should know better now.
func (m *mirrors) reconsider() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moved, m.version = time.Now(), m.g.members.epoch()
	for _, p := range m.g.partitions.known() {
		if p.owned.Load() || !p.hasFollowers() {
			continue
		}
		if on := p.mirror.on; on != nil && on.to != m.g.router.route(p.id) {
			m.leaveLocked(p)
		}
		m.wantLocked(p)
	}
}

// want has a partition told about, if another gateway sequences it.
func (m *mirrors) want(p *partition) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wantLocked(p)
}

func (m *mirrors) wantLocked(p *partition) {
	if p.mirror.on != nil || p.mirror.again || p.owned.Load() || m.ended {
		return
	}
	to := m.g.router.route(p.id)
	if to == m.g.ID() {
		return
	}
	s := m.streams[to]
	if s == nil {
		s = &mirrorStream{m: m, to: to, parts: make(map[metadata.PartitionID]*partition), wake: make(chan struct{}, 1)}
		s.over, s.hangUp = context.WithCancel(m.life)
		m.streams[to] = s
		m.running.Go(s.run)
	}
	p.mirror.on, p.mirror.told, p.mirror.first = s, nil, make(chan struct{})
	began := time.Now()
	p.mirror.patience = time.AfterFunc(patience, func() { m.tooLate(s, p, began) })
	s.parts[p.id] = p
	s.begin = append(s.begin, p.id)
	s.poke()
}

// doubt has the next reader of a partition read the table.
func (m *mirrors) doubt(p *partition) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.mirror.valid = false
}

// drop ends the telling: this gateway sequences the partition itself.
func (m *mirrors) drop(p *partition) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leaveLocked(p)
}

// tooLate ends the telling about a partition of which nothing was told for long, and the whole stream if
// nothing at all was.
func (m *mirrors) tooLate(s *mirrorStream, p *partition, began time.Time) {
	m.mu.Lock()
	mine, heard := p.mirror.on == s && p.mirror.told == nil, s.heard.After(began)
	if mine && heard {
		m.leaveLocked(p)
	}
	m.mu.Unlock()
	switch {
	case mine && heard:
		m.again([]*partition{p})
	case mine:
		s.hangUp()
	}
}

// leaveLocked takes a partition off its stream.
func (m *mirrors) leaveLocked(p *partition) {
	s := p.mirror.on
	if s == nil {
		return
	}
	if s.parts[p.id] == p {
		delete(s.parts, p.id)
	}
	s.end = append(s.end, p.id)
	s.poke()
	m.silentLocked(p)
}

// silentLocked notes that nobody tells of a partition.
func (m *mirrors) silentLocked(p *partition) {
	p.mirror.on, p.mirror.valid = nil, false
	p.mirror.patience.Stop()
	if p.mirror.told == nil {
		close(p.mirror.first)
	}
	p.mirror.told = nil
}

// unsettled is for how many lease times after gateways came or went they may not agree on
// whose a partition is.
const unsettled = 4

// tidy ends the telling about what nobody reads. While gateways may not agree on whose a
// partition is, it looks after those of which nobody tells: one may have taken one, and left it
// again, without this gateway's hearing of it.
func (m *mirrors) tidy() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.moved) < unsettled*m.g.config.LeaseTime && !m.caring && !m.ended {
		m.caring = true
		m.running.Go(m.care)
	}
	for _, s := range m.streams {
		for _, p := range s.parts {
			if p.unused() > mirrorLinger && !p.hasFollowers() {
				m.leaveLocked(p)
			}
		}
	}
}

// care looks after what somebody waits for and nobody tells of.
func (m *mirrors) care() {
	var untold []*partition
	for _, p := range m.g.partitions.known() {
		if !p.owned.Load() && p.hasWaiters() && m.untold(p) {
			untold = append(untold, p)
		}
	}
	m.lookAfter(untold)
	m.mu.Lock()
	m.caring = false
	m.mu.Unlock()
}

// view is what readers see of a partition that another gateway sequences, or nobody.
func (m *mirrors) view(ctx context.Context, p *partition) (*metadata.View, error) {
	p.touch()
	m.mu.Lock()
	m.wantLocked(p)
	told, first := p.mirror.told != nil, p.mirror.first
	waiting := p.mirror.on != nil && !told
	m.mu.Unlock()
	if waiting {
		limit := time.NewTimer(firstView)
		defer limit.Stop()
		select {
		case <-first:
		case <-limit.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		m.mu.Lock()
		told = p.mirror.told != nil
		m.mu.Unlock()
	}
	if v := p.view.Load(); told && v != nil || p.owned.Load() && v != nil {
		return v, nil
	}
	return m.fromTable(ctx, p)
}

// fromTable reads a partition's view from the table, unless it was read before and nobody
// can have appended since: whoever does is either this gateway, or has come since.
func (m *mirrors) fromTable(ctx context.Context, p *partition) (*metadata.View, error) {
	m.mu.Lock()
	st := p.mirror
	alone := m.g.config.Exclusive || m.g.router.route(p.id) == m.g.ID()
	// For a while after gateways came or went they may not agree on whose a partition is.
	settled := m.g.config.Exclusive || time.Since(m.moved) > unsettled*m.g.config.LeaseTime || time.Since(st.read) < m.g.config.LeaseTime/4
	fresh := st.valid && (alone && settled && st.version == m.version || time.Since(st.read) < m.g.config.LeaseTime/40)
	version := m.version
	m.mu.Unlock()
	if v := p.view.Load(); v != nil && fresh {
		return v, nil
	}
	return m.readTable(ctx, p, version)
}

// readTable reads a partition's view from the table, once for all who ask at the same time.
func (m *mirrors) readTable(ctx context.Context, p *partition, version uint64) (*metadata.View, error) {
	began := time.Now()
	read := m.reads.DoChan(p.id.String(), func() (any, error) {
		limit, cancel := context.WithTimeout(m.lifetime(), peerTime)
		defer cancel()
		return m.g.readTable(limit, p.id)
	})
	select {
	case r := <-read:
		if r.Err != nil {
			return nil, r.Err
		}
		p.publish(r.Val.(*metadata.View))
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m.mu.Lock()
	if p.mirror.on == nil {
		p.mirror.valid, p.mirror.read, p.mirror.version = true, began, version
	}
	m.mu.Unlock()
	return p.view.Load(), nil
}

func (m *mirrors) lifetime() context.Context {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life
}

// readTable reads a view from the table. Should its sequencer live, it is asked from now on.
func (g *Gateway) readTable(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	ctx = bill.ForTopic(ctx, id.Topic)
	v, holder, err := g.journals.View(ctx, id)
	if holder != "" && !g.config.Exclusive && holder != g.ID() && g.members.lives(holder) {
		g.router.learn(id, holder)
	}
	return v, err
}

// mirrorStream is what one other gateway tells.
type mirrorStream struct {
	m  *mirrors
	to metadata.GatewayID
	// Guarded by mirrors.mu:
	parts      map[metadata.PartitionID]*partition
	begin, end []metadata.PartitionID // to be asked for

	wake  chan struct{}
	heard time.Time // when it told something last; guarded by mirrors.mu
	// hangUp ends the stream: it tells nothing of what it was asked for.
	hangUp context.CancelFunc
	over   context.Context
}

func (s *mirrorStream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run talks to the gateway until it goes, or something goes wrong; what it told about is
// then asked for elsewhere, or again.
func (s *mirrorStream) run() {
	defer s.hangUp()
	err := s.talk(s.over)
	m := s.m
	m.mu.Lock()
	delete(m.streams, s.to)
	left := make([]*partition, 0, len(s.parts))
	for _, p := range s.parts {
		m.silentLocked(p)
		left = append(left, p)
	}
	ended := m.ended || m.life.Err() != nil
	m.mu.Unlock()
	if ended || len(left) == 0 {
		return
	}
	m.g.log.Debug("another gateway no longer tells of its partitions", "gateway", s.to, "error", err)
	m.again(left)
}

// mirrorPause is before partitions are asked for again that nobody told about.
const mirrorPause = 100 * time.Millisecond

// again asks, in a moment, for partitions that somebody waits for. One that was refused
// time and again is asked for at that pace, whoever wants it.
func (m *mirrors) again(left []*partition) {
	m.mu.Lock()
	defer m.mu.Unlock()
	later := make([]*partition, 0, len(left))
	for _, p := range left {
		if !p.mirror.again {
			p.mirror.again = true
			later = append(later, p)
		}
	}
	if len(later) == 0 {
		return
	}
	time.AfterFunc(mirrorPause+jitter(mirrorPause), func() {
		m.mu.Lock()
		for _, p := range later {
			p.mirror.again = false
		}
		m.mu.Unlock()
		m.lookAfter(slices.DeleteFunc(later, func(p *partition) bool { return !p.hasFollowers() || p.owned.Load() }))
	})
}

// tableReadsAtOnce is how many views are read from the table at a time when nobody tells.
const tableReadsAtOnce = 16

// lookAfter reads partitions from the table, so that nothing is missed for long while nobody
// tells of them, and has them told about again.
func (m *mirrors) lookAfter(untold []*partition) {
	life := m.lifetime()
	var group errgroup.Group
	group.SetLimit(tableReadsAtOnce)
	for _, p := range untold {
		group.Go(func() error {
			if life.Err() != nil {
				return nil
			}
			m.mu.Lock()
			version := m.version
			m.mu.Unlock()
			if _, err := m.readTable(life, p, version); err != nil {
				m.g.log.Debug("partition not read", "partition", p.id.String(), "error", err)
			}
			p.nudge() // those who watch it from elsewhere may have to watch another gateway
			if p.hasFollowers() {
				m.want(p)
			}
			return nil
		})
	}
	group.Wait() // no errors
}

// teller is the gateway that tells of a partition which somebody has appended to; "" when none does.
func (m *mirrors) teller(id metadata.PartitionID) metadata.GatewayID {
	p := m.g.partitions.peek(id)
	if p == nil {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := p.view.Load(); p.mirror.on == nil || p.mirror.told == nil || v == nil || v.Epoch == 0 {
		return ""
	}
	return p.mirror.on.to
}

// untold says that nobody was asked about a partition.
func (m *mirrors) untold(p *partition) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.mirror.on == nil
}

// talk opens the stream and takes what it tells.
func (s *mirrorStream) talk(ctx context.Context) error {
	peer, err := s.m.g.peers.get(s.to)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(peer.gone, cancel)()
	stream, err := peer.client.Watch(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	sent := make(chan error, 1)
	go func() {
		sent <- s.ask(ctx, stream)
		cancel()
		// While its sending half is open, HTTP/2 does not hear that the context has ended.
		_ = stream.CloseSend()
	}()
	for {
		response, err := stream.Receive()
		if err != nil {
			cancel()
			<-sent
			return err
		}
		for _, u := range response.GetUpdates() {
			if err := s.take(u); err != nil {
				cancel()
				<-sent
				return err
			}
		}
	}
}

// ask sends what is to be told about.
func (s *mirrorStream) ask(ctx context.Context, stream peerv1connect.PeerServiceWatchClientStream) error {
	call := s.m.g.peers.introduce(s.to)
	for {
		s.m.mu.Lock()
		request := &peerv1.WatchRequest{Call: call}
		for _, id := range s.end {
			request.End = append(request.End, partitionMessage(id))
		}
		for _, id := range s.begin {
			if s.parts[id] != nil {
				request.Begin = append(request.Begin, &peerv1.Interest{Partition: partitionMessage(id)})
			}
		}
		s.begin, s.end = nil, nil
		s.m.mu.Unlock()
		if call != nil || len(request.Begin)+len(request.End) > 0 {
			if err := stream.Send(request); err != nil {
				return err
			}
			call = nil
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take takes one update.
func (s *mirrorStream) take(u *peerv1.Update) error {
	id, err := partitionOfMessage(u.GetPartition())
	if err != nil {
		return err
	}
	m := s.m
	m.mu.Lock()
	s.heard = time.Now()
	p := s.parts[id]
	var told *metadata.View
	if p != nil {
		told = p.mirror.told
	}
	m.mu.Unlock()
	if p == nil {
		return nil // no longer wanted
	}
	if r := u.GetRefusal(); r != nil {
		s.refused(p, refusalError(r))
		return nil
	}
	var v *metadata.View
	if u.GetView() != nil {
		v, err = metadata.DecodeView(id, u.GetView())
	} else if told == nil {
		return nil // it was under way when the partition was asked for again: all of it will follow
	} else {
		v, err = told.Follow(u.GetDelta())
	}
	if err != nil {
		if errors.Is(err, metadata.ErrIndexMoved) {
			s.tellAgain(p)
			return nil
		}
		return err
	}
	p.publish(v)
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.mirror.on != s {
		return nil
	}
	if p.mirror.told == nil {
		p.mirror.patience.Stop()
		close(p.mirror.first)
	}
	p.mirror.told = v
	if u.GetView() != nil {
		p.mirror.whole = len(v.Tail)
	} else if len(v.Tail) > max(tailLimit, 2*p.mirror.whole) {
		p.mirror.whole = len(v.Tail) // once is enough
		s.begin = append(s.begin, id)
		s.poke()
	}
	return nil
}

// tellAgain asks for the whole of a partition's view.
func (s *mirrorStream) tellAgain(p *partition) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if p.mirror.on == s {
		s.begin = append(s.begin, p.id)
		s.poke()
	}
}

// refused goes on elsewhere with a partition that the gateway does not tell about.
func (s *mirrorStream) refused(p *partition, err error) {
	m := s.m
	var held *elsewhere
	if errors.As(err, &held) && held.holder != s.to {
		m.g.router.learn(p.id, held.holder)
	}
	m.mu.Lock()
	delete(s.parts, p.id)
	if p.mirror.on == s {
		m.silentLocked(p)
	}
	m.mu.Unlock()
	m.again([]*partition{p})
}
