package gateway

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
)

// members knows which gateways live. No clock of another host decides anything: a
// gateway is dead when its row did not change for the lease time on our own
// monotonic clock, of which only that time counts in which the table answered, and took
// our own heartbeats. So after an outage, or a pause of our own, nobody is taken for dead
// at once.
type members struct {
	g *Gateway

	mu     sync.Mutex
	seen   map[metadata.GatewayID]sighting
	looked time.Time // when the table answered last
	beaten time.Time // when it took a heartbeat of ours last
	looks  uint64
	// dead are predecessors on our own data folder, whose lock we hold, and our own ids that
	// were fenced: they cannot be alive.
	dead    map[metadata.GatewayID]bool
	leaving bool // this gateway drains: it takes no new partitions
	// living are those that may be given partitions, this one included, in order; gone those that
	// fell silent, that were sealed or closed: something of theirs may be left to do.
	living, gone []metadata.GatewayID
	// merging are those that merge small segments, in order.
	merging []metadata.GatewayID
	version uint64 // of living
	changed chan struct{}

	looking chan struct{} // holds one while somebody reads the rows
}

// sighting is what is known of another gateway.
type sighting struct {
	row    metadata.Gateway
	silent time.Duration // for how long its row did not change
	open   bool          // it was seen before it was closed
	at     time.Time     // when this row was seen first
}

func newMembers(g *Gateway) *members {
	return &members{g: g, seen: make(map[metadata.GatewayID]sighting), dead: make(map[metadata.GatewayID]bool),
		changed: make(chan struct{}), looking: make(chan struct{}, 1)}
}

// inherit notes whose data folder this is.
func (m *members) inherit() error {
	if m.g.buffers == nil {
		return nil
	}
	ids, err := m.g.buffers.Gateways()
	if err != nil {
		return err
	}
	for _, id := range ids {
		m.bury(metadata.GatewayID(id))
	}
	return nil
}

// bury notes that an id is known to have ended.
func (m *members) bury(id metadata.GatewayID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead[id] = true
}

// beat notes that the table took a heartbeat of ours.
func (m *members) beat() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.beaten = time.Now()
}

// leave notes that this gateway takes no new partitions.
func (m *members) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leaving = true
	m.judge()
}

// adopt notes that this gateway goes by another id now.
func (m *members) adopt() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.judge()
}

// look reads all gateways' rows.
func (m *members) look(ctx context.Context) error {
	select {
	case m.looking <- struct{}{}:
		defer func() { <-m.looking }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return m.read(ctx)
}

// refresh returns when the rows were read by a look that began after the call: those who
// wait share one.
func (m *members) refresh(ctx context.Context) error {
	m.mu.Lock()
	began := m.looks
	m.mu.Unlock()
	select {
	case m.looking <- struct{}{}:
		defer func() { <-m.looking }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	m.mu.Lock()
	shared := m.looks >= began+2 // one was under way when we came, the next began later
	m.mu.Unlock()
	if shared {
		return nil
	}
	return m.read(ctx)
}

// read reads the rows. The caller holds looking.
func (m *members) read(ctx context.Context) error {
	rows, err := metadata.ListGateways(ctx, m.g.table, metadata.Strong, m.sighted)
	if err != nil {
		return err
	}
	changes := false // of topics, by another gateway
	defer func() {   // without holding mu: whoever hears of it may ask who lives
		if changes {
			m.g.upkeep.catalogChanged()
		}
	}()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looks++
	now := time.Now()
	watched := min(now.Sub(m.looked), m.g.config.LeaseTime/2) // a pause of our own is not theirs
	m.looked = now
	if now.Sub(m.beaten) > m.g.config.LeaseTime/2 && !seeded.Has(seeded.ClockDecides) {
		watched = 0 // the table takes no heartbeat of ours: theirs may fare no better
	}
	own := m.g.ID()
	m.forgetRemoved(rows)
	for _, row := range rows {
		was, known := m.seen[row.ID]
		m.g.litter.heard(&was.row, &row, own)
		switch {
		case !known || was.row.Stamp != row.Stamp:
			m.seen[row.ID] = sighting{row: row, open: was.open || row.State != metadata.GatewayClosed, at: now}
			changes = changes || row.ID != own && row.TopicChanges != was.row.TopicChanges
		default:
			was.silent += watched
			m.seen[row.ID] = was
		}
		if m.g.config.Exclusive && row.ID != own {
			m.dead[row.ID] = true // the table's lock is ours alone
		}
	}
	m.judge()
	return nil
}

// forgetRemoved forgets gateways whose rows are gone: a collector removes those that are closed. They must not be taken
// for what they were when they were seen last. The caller holds mu.
func (m *members) forgetRemoved(rows []metadata.Gateway) {
	there := make(map[metadata.GatewayID]bool, len(rows))
	for i := range rows {
		there[rows[i].ID] = true
	}
	for id := range m.seen {
		if !there[id] {
			delete(m.seen, id)
		}
	}
}

// sighted is a row as it was seen last.
func (m *members) sighted(id metadata.GatewayID) (metadata.Gateway, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, known := m.seen[id]
	return s.row, known
}

// judge works out who lives, and tells those who watch when somebody comes or goes. The caller holds mu.
func (m *members) judge() {
	living := make([]metadata.GatewayID, 0, len(m.living)+1)
	merging := make([]metadata.GatewayID, 0, len(m.merging)+1)
	gone := make([]metadata.GatewayID, 0, len(m.gone)+1)
	own := m.g.ID()
	for id, s := range m.seen {
		switch {
		case id == own:
		case m.isDeadLocked(id) || s.ended():
			gone = append(gone, id)
		case s.row.State == metadata.GatewayLive && s.row.Protocol == peerProtocol:
			// One of another protocol cannot be asked: its partitions would be out of reach from here.
			living, merging = enlist(living, merging, id, s.row.Role)
		}
	}
	if !m.leaving {
		living, merging = enlist(living, merging, own, m.g.config.Role)
	}
	slices.Sort(living)
	slices.Sort(merging)
	mergersMoved := !slices.Equal(merging, m.merging)
	m.merging = merging
	slices.Sort(gone)
	moved := !slices.Equal(living, m.living)
	if moved {
		m.living = living
		m.version++
	}
	if moved || mergersMoved || !slices.Equal(gone, m.gone) {
		m.gone = gone
		close(m.changed)
		m.changed = make(chan struct{})
		m.g.litter.poke() // it may be another gateway that comes first
	}
}

// enlist adds a gateway to those that do what its role says.
func enlist(sequencing, merging []metadata.GatewayID, id metadata.GatewayID, role string) (_, _ []metadata.GatewayID) {
	if role != metadata.RoleCompactor {
		sequencing = append(sequencing, id)
	}
	if role != metadata.RoleGateway {
		merging = append(merging, id)
	}
	return sequencing, merging
}

// ended says that the row's gateway will not go on under its id, and that something of it may
// be left to take.
func (s *sighting) ended() bool {
	return s.row.State == metadata.GatewaySealed || s.row.State == metadata.GatewayClosed && s.open
}

// isDeadLocked says whether a gateway has ended or fallen silent.
func (m *members) isDeadLocked(id metadata.GatewayID) bool {
	return m.dead[id] || m.seen[id].silent > m.g.config.LeaseTime
}

// winner is the gateway that should sequence a partition; "" when none may.
func (m *members) winner(id metadata.PartitionID) metadata.GatewayID {
	m.mu.Lock()
	living := m.living // never changed, only replaced
	m.mu.Unlock()
	return metadata.Rendezvous(id, living)
}

// lives says whether a gateway may be asked.
func (m *members) lives(id metadata.GatewayID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, known := m.seen[id]
	return known && !m.isDeadLocked(id) && (s.row.State == metadata.GatewayLive || s.row.State == metadata.GatewayDraining)
}

// peerOf is where a gateway's peer service is ("" when it has none), and what it speaks.
func (m *members) peerOf(id metadata.GatewayID) (address string, protocol uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	row := m.seen[id].row
	return row.Peer, row.Protocol
}

// zone lists the gateways that live in this one's zone, this one included; nobody when it has no zone.
func (m *members) zone() []metadata.GatewayID {
	zone := m.g.config.Zone
	if zone == "" {
		return nil
	}
	own := m.g.ID()
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []metadata.GatewayID
	for _, id := range m.living {
		if id == own || m.seen[id].row.Zone == zone {
			list = append(list, id)
		}
	}
	return list
}

// watch returns what is closed when somebody comes or goes next.
func (m *members) watch() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// epoch counts the changes of who lives.
func (m *members) epoch() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.version
}

// others lists the other gateways' rows in a state.
func (m *members) others(states ...metadata.GatewayState) []metadata.Gateway {
	own := m.g.ID()
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []metadata.Gateway
	for id, s := range m.seen {
		if id != own && slices.Contains(states, s.row.State) {
			list = append(list, s.row)
		}
	}
	return list
}

// departed lists gateways that are sealed, or were closed since this one looks: what is in
// their journals may still have to be taken.
func (m *members) departed() []metadata.GatewayID {
	own := m.g.ID()
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []metadata.GatewayID
	for id, s := range m.seen {
		if id != own && s.ended() {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// knows says whether a gateway has a row that was seen.
func (m *members) knows(id metadata.GatewayID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, known := m.seen[id]
	return known
}

// takesFrom says whether references of an uploader may be judged: not those of one that is
// closed or was never seen. A partition may have forgotten it: whatever came of it would
// be taken a second time.
func (m *members) takesFrom(id metadata.GatewayID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, known := m.seen[id.Owner()]
	return known && s.row.State != metadata.GatewayClosed
}

// hasEnded says whether nothing more can come of an id on our data folder: it is closed,
// or its process died before it had a row.
func (m *members) hasEnded(id metadata.GatewayID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, known := m.seen[id]
	return s.row.State == metadata.GatewayClosed || !known && m.dead[id]
}

// unclosed lists ids that are known to have ended and whose rows do not say so.
func (m *members) unclosed() []metadata.GatewayID {
	var list []metadata.GatewayID
	for _, row := range m.others(metadata.GatewayLive, metadata.GatewayDraining, metadata.GatewaySealed) {
		if m.isDead(row.ID) {
			list = append(list, row.ID)
		}
	}
	slices.Sort(list)
	return list
}

// isDead says whether a gateway is known to have ended, since it ran on our data folder.
func (m *members) isDead(id metadata.GatewayID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead[id]
}

// first says whether this gateway is the first of those that live: what is to be done once
// in the cluster is up to it.
func (m *members) first() bool {
	own := m.g.ID()
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.living) == 0 || m.living[0] == own
}

// mayTakeFrom says whether a gateway's journal may be sealed: nil when it is dead
// or has left, [elsewhere] while it lives.
func (m *members) mayTakeFrom(ctx context.Context, id metadata.GatewayID) error {
	m.mu.Lock()
	_, known := m.seen[id]
	dead := m.dead[id]
	m.mu.Unlock()
	if !known && !dead {
		if err := m.refresh(ctx); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, known := m.seen[id]
	switch {
	case m.isDeadLocked(id), !known, s.row.State == metadata.GatewaySealed, s.row.State == metadata.GatewayClosed:
		return nil
	}
	return &elsewhere{holder: id}
}

// seal ends another gateway's journal, and tells it so.
func (m *members) seal(ctx context.Context, id metadata.GatewayID) error {
	if _, err := metadata.Seal(ctx, m.g.table, id, m.g.ID()); err != nil {
		return err
	}
	return metadata.MarkSealed(ctx, m.g.table, id, m.g.now())
}

// run looks at the others' rows until ctx ends, more often while somebody seems to have died.
func (m *members) run(ctx context.Context) error {
	if m.g.config.Exclusive {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	for {
		interval := m.g.config.LeaseTime / 3
		if m.suspects() {
			interval /= 4
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(interval):
		}
		limit, cancel := context.WithTimeout(ctx, m.g.config.LeaseTime)
		err := m.look(limit)
		cancel()
		if err != nil && ctx.Err() == nil {
			m.g.log.Warn("the other gateways' heartbeats cannot be read; nobody is taken for dead meanwhile", "error", err)
		}
		m.g.peers.prune()
		m.g.mirrors.tidy()
	}
}

// suspects says that a gateway has been silent for longer than its beats are apart.
func (m *members) suspects() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, s := range m.seen {
		live := s.row.State == metadata.GatewayLive || s.row.State == metadata.GatewayDraining
		if live && s.silent > m.g.config.LeaseTime/2 && !m.isDeadLocked(id) {
			return true
		}
	}
	return false
}

// silenced lists gateways that are dead but not marked so.
func (m *members) silenced() []metadata.GatewayID {
	own := m.g.ID()
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []metadata.GatewayID
	for id, s := range m.seen {
		live := s.row.State == metadata.GatewayLive || s.row.State == metadata.GatewayDraining
		if id != own && live && m.isDeadLocked(id) {
			list = append(list, id)
		}
	}
	return list
}

// jitter is a random part of a duration: those who do the same thing for the same
// reason should not do it at once.
func jitter(d time.Duration) time.Duration { return rand.N(d) }

// elsewhere says that another gateway sequences a partition.
type elsewhere struct {
	holder metadata.GatewayID // "": nobody knows who
}

func (e *elsewhere) Error() string {
	if e.holder == "" {
		return metadata.ErrHeld.Error()
	}
	return fmt.Sprintf("%v: by %s", metadata.ErrHeld, e.holder)
}

// Unwrap makes it metadata.ErrHeld.
func (e *elsewhere) Unwrap() error { return metadata.ErrHeld }

// overdue lists gateways that were sealed so long ago that their disks are not expected back;
// next is how long it takes until another one is, 0 when none will.
func (m *members) overdue(now time.Time) (list []metadata.Gateway, next time.Duration) {
	if m.g.config.CloseAfter <= 0 {
		return nil, 0
	}
	for _, row := range m.others(metadata.GatewaySealed) {
		if row.SealedAt <= 0 || m.isDead(row.ID) {
			continue
		}
		if left := m.g.config.CloseAfter - now.Sub(time.UnixMilli(row.SealedAt)); left < 0 {
			list = append(list, row)
		} else if next == 0 || left < next {
			next = left + time.Millisecond
		}
	}
	return list, next
}
