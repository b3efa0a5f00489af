package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
)

const (
	// acquisitions is how many partitions are taken at once.
	acquisitions = 64
	// checkpointsAtOnce is how many checkpoints are written at once.
	checkpointsAtOnce = 32
	// checkpointPause follows a checkpoint that could not be written.
	checkpointPause = time.Second
	// journalUnits is how many write units of so many bytes a journal takes a second: one
	// partition key of DynamoDB ends at 1,000.
	journalUnits = 800
	writeUnit    = 1 << 10
	// cyclesAFlush bounds the cycles in a flush interval, on average.
	cyclesAFlush = 2
)

// ticket asks for one decision on one partition.
type ticket struct {
	partition metadata.PartitionID
	// decide judges against the state. A change that it returns is applied at once;
	// it is called again later when it returned a verdict that waits, or ErrBusy.
	decide func(*metadata.Partition) (metadata.Verdict, *metadata.Change, error)
	// done is told the verdict, once it is settled. Called from the sequencer's
	// goroutine: it must not block.
	done func(metadata.Verdict, error)
	// bytes is how much of what producers wait for rests on it.
	bytes int64
	// gone, if set, says that nobody waits any more: the ticket is dropped, and done not called.
	gone <-chan struct{}
}

// held is a partition that this gateway sequences.
type held struct {
	state  *metadata.Partition
	lease  *metadata.Lease
	shared *partition
	// acquiring: the tickets in parked wait for the lease.
	acquiring bool
	parked    []*ticket
	dirty     bool // has changes in this cycle that are not published
	// from is where the log ended when it was taken, noted as far as those who merge hear of it.
	from, noted int64
	// handing: it goes to another gateway as soon as a checkpoint of it is written. Tickets
	// wait in parked for that.
	handing bool
}

// sequencer gives batches their offsets. One goroutine owns all of its state and
// works in cycles: take what waits, judge it, put one journal entry, answer.
type sequencer struct {
	g       *Gateway
	t       *tenure
	journal *metadata.Journal
	parts   map[metadata.PartitionID]*held
	// parked are partitions with tickets that wait for something.
	parked map[*held]struct{}
	// unfolded has the partitions with changes that no checkpoint has, oldest first;
	// writing those whose checkpoint is being written, with their first such change.
	unfolded unfolded
	writing  map[*held]uint64
	// due are those whose checkpoint does not wait for the journal to fill up.
	due      map[*held]struct{}
	rows     journalRows
	fold     foldLimits
	trimming bool
	// trimmedTo is the row up to which the journal was, or is being, trimmed.
	trimmedTo uint64
	untrimmed int // bytes of rows that could be trimmed
	// owed is what was committed since the last trim, in bytes: whose entries a trim removes.
	owed map[metadata.TopicID]int64

	acquired     chan acquisition
	checkpointed chan checkpointed
	trimmed      chan error
	slots        chan struct{} // limits acquisitions
	writers      chan struct{} // limits checkpoints
	outstanding  int           // acquisitions, checkpoints, trims
	lastCycle    time.Time
	spent        time.Time     // until when the cycles so far use up what cyclesAFlush allows
	spacing      time.Duration // that the size of the last cycle asks for
	pending      since         // the table has been asked to commit
	failed       time.Time     // when a checkpoint could not be written last
	holding      atomic.Int64  // partitions
	// handovers are partitions to hand over; releasing those whose last checkpoint is being
	// written; offers those of which the gateway they are for has not heard.
	handovers []*held
	releasing map[*held]struct{}
	offers    map[metadata.GatewayID][]metadata.PartitionID
	leaving   *leaveRequest
	retry     <-chan time.Time // of hand-overs, after a checkpoint could not be written

	mu     sync.Mutex
	queue  []*ticket
	queued int64 // bytes of them
	closed error
	uneven bool // who lives has changed: see which partitions should be elsewhere
	// barriers are told once every cycle is settled that began before they came.
	barriers []chan error
	wake     chan struct{}
	quit     chan leaveRequest

	sealedMu sync.Mutex
	sealed   map[metadata.GatewayID]*sealing
}

// sealing reads a predecessor's sealed journal once for all who ask.
type sealing struct {
	turn    chan struct{} // holds one while somebody reads it: whoever waits for it can give up
	journal *metadata.SealedJournal
}

type acquisition struct {
	id    metadata.PartitionID
	state *metadata.Partition
	lease *metadata.Lease
	err   error
}

type leaveRequest struct {
	ctx  context.Context
	done chan error
}

func newSequencer(t *tenure) *sequencer {
	return &sequencer{
		g: t.g, t: t, parts: make(map[metadata.PartitionID]*held), wake: make(chan struct{}, 1), quit: make(chan leaveRequest, 1),
		parked: make(map[*held]struct{}), writing: make(map[*held]uint64), due: make(map[*held]struct{}), rows: journalRows{first: 1}, fold: foldLimits{t.g.config.FoldRows, t.g.config.FoldBytes, foldStretch * t.g.config.FoldBytes, uint64(t.g.config.FoldRows)},
		acquired: make(chan acquisition), checkpointed: make(chan checkpointed), trimmed: make(chan error),
		slots: make(chan struct{}, acquisitions), writers: make(chan struct{}, checkpointsAtOnce),
		sealed: make(map[metadata.GatewayID]*sealing), owed: make(map[metadata.TopicID]int64), releasing: make(map[*held]struct{}), offers: make(map[metadata.GatewayID][]metadata.PartitionID),
	}
}

// submit queues tickets. When the sequencer has ended they are answered at once.
func (s *sequencer) submit(tickets ...*ticket) {
	s.mu.Lock()
	closed := s.closed
	if closed == nil {
		s.queue = append(s.queue, tickets...)
		for _, t := range tickets {
			s.queued += t.bytes
		}
	}
	s.mu.Unlock()
	if closed != nil {
		for _, t := range tickets {
			t.done(metadata.Verdict{}, closed)
		}
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// refer asks for a verdict on a reference.
func (s *sequencer) refer(ref *metadata.Reference, gone <-chan struct{}, done func(metadata.Verdict, error)) *ticket {
	var bytes int64
	for i := range ref.Batches {
		bytes += int64(ref.Batches[i].Size)
	}
	return &ticket{partition: ref.Partition, done: done, bytes: bytes, gone: gone,
		decide: func(p *metadata.Partition) (metadata.Verdict, *metadata.Change, error) {
			if !s.g.members.takesFrom(ref.Uploader) && !seeded.Has(seeded.AcceptClosedUploader) {
				return metadata.Verdict{}, nil, &uploaderClosed{ref.Uploader}
			}
			v, c := p.Judge(ref)
			return v, c, nil
		}}
}

// uploaderClosed refuses the references of a gateway that is closed, or that was never one.
type uploaderClosed struct{ id metadata.GatewayID }

func (e *uploaderClosed) Error() string {
	return fmt.Sprintf("gateway %s is closed: nothing more is taken from it", e.id)
}

// stuck refuses what would only wait in line: the table has not taken a commit for so long that
// whoever asks would be gone before the answer, and would have asked again.
func (s *sequencer) stuck() error {
	if lasting := s.pending.lasting(); lasting > peerWait {
		return fmt.Errorf("%w: it has not taken a commit for %s", metadata.ErrUnavailable, lasting.Round(time.Second))
	}
	return nil
}

// ask submits one decision and waits for it.
func (s *sequencer) ask(ctx context.Context, id metadata.PartitionID, decide func(*metadata.Partition) (*metadata.Change, error)) error {
	if err := s.stuck(); err != nil {
		return err
	}
	answer := make(chan error, 1)
	s.submit(&ticket{partition: id, gone: ctx.Done(), done: func(_ metadata.Verdict, err error) { answer <- err },
		decide: func(p *metadata.Partition) (metadata.Verdict, *metadata.Change, error) {
			c, err := decide(p)
			return metadata.Verdict{Status: metadata.Judged}, c, err
		}})
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rebalance has the sequencer hand over what is no longer its own to sequence.
func (s *sequencer) rebalance() {
	s.mu.Lock()
	s.uneven = true
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// settled returns once every cycle is settled that began before the call. What is judged later knows all that this gateway
// knew then.
func (s *sequencer) settled(ctx context.Context) error {
	passed := make(chan error, 1)
	s.mu.Lock()
	closed := s.closed
	s.barriers = append(s.barriers, passed)
	s.mu.Unlock()
	if closed != nil {
		return closed
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	select {
	case err := <-passed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// passBarriers answers those who wait for cycles to be settled: between two of them none is under way.
func (s *sequencer) passBarriers(err error) {
	s.mu.Lock()
	barriers := s.barriers
	s.barriers = nil
	s.mu.Unlock()
	for _, passed := range barriers {
		passed <- err
	}
}

// run is the owner. It returns metadata.ErrFenced when the journal was sealed, or
// the context's error.
func (s *sequencer) run(ctx context.Context) (err error) {
	defer func() { s.fail(err) }()
	var due <-chan time.Time
	for {
		if s.leaving != nil && s.outstanding == 0 && !s.waiting() && len(s.handovers) == 0 {
			err := s.finish(s.leaving.ctx)
			s.leaving.done <- err
			return err
		}
		if err := s.await(ctx, due); err != nil {
			return err
		}
		s.passBarriers(nil)
		due = nil
		if wait := s.pace(); wait > 0 {
			due = time.After(wait)
		} else if err := s.cycle(ctx); err != nil {
			return err
		}
		s.checkpoint(ctx)
		s.handOver(ctx)
		s.trimJournal(ctx)
	}
}

// await waits until something happens, and takes all that has: a thousand acquisitions that end
// between two cycles are one cycle's work.
func (s *sequencer) await(ctx context.Context, due <-chan time.Time) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case request := <-s.quit:
		s.leaving = &request
		s.handOverAll()
	case <-s.retry:
		s.retry = nil
	case <-s.wake:
	case <-due:
	case a := <-s.acquired:
		s.take(a)
	case c := <-s.checkpointed:
		if err := s.written(c); err != nil {
			return err
		}
	case err := <-s.trimmed:
		s.trimEnded(err)
	}
	for {
		select {
		case a := <-s.acquired:
			s.take(a)
		case c := <-s.checkpointed:
			if err := s.written(c); err != nil {
				return err
			}
		case err := <-s.trimmed:
			s.trimEnded(err)
		default:
			return nil
		}
	}
}

// waiting says whether tickets wait for anything.
func (s *sequencer) waiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) > 0
}

// load is how many bytes of producers wait in the queue.
func (s *sequencer) load() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queued
}

// laden says that so many bytes are worth a commit of their own: it does not count among those in a flush interval.
func (s *sequencer) laden(bytes int64) bool { return bytes >= s.g.config.SegmentBytes/2 }

// pace is how long the next cycle has to wait, so that commits are no more than the table should
// bear, and no more than cyclesAFlush in a flush interval however many gateways refer to this one,
// each at its own moment. A cycle that follows a quiet time may be followed by the next as soon as the
// spacing allows, one that is laden in half of that: those are bounded by the bytes of producers, who may be waiting
// with all that they have in flight. 0 when there is no need to wait, or nothing to commit.
func (s *sequencer) pace() time.Duration {
	if len(s.parked) == 0 && !s.waiting() {
		return 0
	}
	c, spacing, laden := s.g.config, s.g.config.CycleInterval, s.laden(s.load())
	if laden {
		spacing /= 2
	}
	wait := max(spacing, s.spacing) - time.Since(s.lastCycle)
	if share := c.FlushInterval / cyclesAFlush; !laden && c.CycleInterval > 0 && c.CycleInterval < share {
		wait = max(wait, time.Until(s.spent.Add(c.CycleInterval-share)))
	}
	return min(max(wait, 0), peerWait/2) // other gateways' references do not wait longer
}

// pendingAnswer is a verdict that waits for its cycle to be settled.
type pendingAnswer struct {
	ticket  *ticket
	verdict metadata.Verdict
	err     error
}

// cycle is one round: what was judged, the rows that will hold it, and who waits.
type cycle struct {
	s       *sequencer
	rows    []*metadata.EntryBuilder
	shares  [][]bill.Share // of the topics in each row, by bytes
	answers []pendingAnswer
	dirty   []*held
	closed  []*held // those that somebody asked about
	litter  uint64  // changes that may leave garbage
}

// cycle judges what waits, commits it, and answers.
func (s *sequencer) cycle(ctx context.Context) error {
	s.mu.Lock()
	tickets, bytes, uneven := s.queue, s.queued, s.uneven
	s.queue, s.queued, s.uneven = nil, 0, false
	s.mu.Unlock()
	if uneven {
		s.findUneven()
	}
	c := &cycle{s: s}
	for i, t := range tickets {
		if err := c.take(ctx, t); err != nil {
			c.abandon(err)
			abandon(tickets[i:], err)
			return err
		}
	}
	if err := c.unpark(); err != nil {
		c.abandon(err)
		return err
	}
	if len(c.answers) == 0 {
		return nil
	}
	s.lastCycle = time.Now()
	if s.spent.Before(s.lastCycle) {
		s.spent = s.lastCycle
	}
	if !s.laden(bytes) {
		s.spent = s.spent.Add(s.g.config.FlushInterval / cyclesAFlush)
	}
	size := 0
	if seeded.Has(seeded.AckBeforeCommit) {
		for _, a := range c.answers {
			a.ticket.done(a.verdict, a.err)
		}
	}
	if seeded.Has(seeded.PublishBeforeCommit) {
		for _, h := range c.dirty {
			h.shared.publish(h.state.View())
		}
	}
	s.pending.begin()
	defer s.pending.end()
	for i, row := range c.rows {
		value := row.Encode()
		if _, err := s.journal.Append(bill.Shared(ctx, c.shares[i]), value); err != nil {
			c.abandon(err)
			if ctx.Err() != nil && !errors.Is(err, metadata.ErrFenced) {
				return context.Cause(ctx)
			}
			return err
		}
		s.rows.add(len(value))
		s.owe(c.shares[i])
		size += len(value)
	}
	s.spacing = 0
	if !s.g.config.Exclusive {
		s.spacing = time.Duration(size/writeUnit+len(c.rows)) * time.Second / journalUnits
	}
	if len(c.rows) == 0 && !seeded.Has(seeded.UnsettledDuplicate) {
		// Duplicates and retriable answers rest on no entry of their own: make sure
		// that nobody has taken over meanwhile.
		if err := s.verify(bill.Shared(ctx, c.askers())); err != nil {
			c.abandon(err)
			return err
		}
	}
	for _, h := range c.dirty {
		h.dirty = false
		v := h.state.View()
		h.shared.publish(v)
		s.g.compaction.committed(v.Partition, h.noted, v)
		h.noted = v.Next
		s.noteDue(h)
	}
	if !seeded.Has(seeded.AckBeforeCommit) {
		for _, a := range c.answers {
			a.ticket.done(a.verdict, a.err)
		}
	}
	for _, h := range c.closed {
		s.forget(h)
	}
	s.g.meters.cycled(len(c.answers), len(c.rows), int64(size))
	s.g.litter.note(c.litter)
	if len(c.rows) > 0 {
		s.g.generation.committed(ctx)
	}
	return nil
}

// verify asks the table until it answers: an answer that rests on unsettled state
// must not be told.
func (s *sequencer) verify(ctx context.Context) error {
	pause := 10 * time.Millisecond
	for {
		err := s.journal.Verify(ctx)
		if err == nil || errors.Is(err, metadata.ErrFenced) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
			pause = min(2*pause, time.Second)
		}
	}
}

// abandon answers everybody when the cycle could not be settled: what was judged
// may yet be in the journal, or may not.
func (c *cycle) abandon(err error) {
	for _, a := range c.answers {
		a.ticket.done(metadata.Verdict{}, err)
	}
}

// abandon answers tickets that no cycle will judge any more.
func abandon(tickets []*ticket, err error) {
	for _, t := range tickets {
		t.done(metadata.Verdict{}, err)
	}
}

func (c *cycle) take(ctx context.Context, t *ticket) error {
	if t.isGone() {
		return nil
	}
	h := c.s.parts[t.partition]
	if h == nil {
		h = &held{acquiring: true, shared: c.s.g.partitions.get(t.partition)}
		c.s.parts[t.partition] = h
		c.s.acquire(ctx, t.partition)
	}
	if h.acquiring || h.handing && !seeded.Has(seeded.ReleaseEarly) {
		h.parked = append(h.parked, t)
		return nil
	}
	return c.decide(h, t)
}

func (c *cycle) decide(h *held, t *ticket) error {
	verdict, change, err := t.decide(h.state)
	if errors.Is(err, metadata.ErrBusy) || verdict.Status == metadata.Waiting && err == nil {
		c.park(h, t)
		return nil
	}
	if verdict.Status == metadata.Refused && err == nil {
		err = metadata.ErrClosed
	}
	if change != nil && seeded.Has(seeded.RefusalInMemory) && refusedAll(&verdict) {
		if err := h.state.Apply(change, c.s.journal.Next()); err != nil {
			return fmt.Errorf("sequencer: %w", err)
		}
		change = nil
	}
	if change != nil {
		n := len(c.rows)
		if n == 0 || !c.rows[n-1].Fits(change) {
			c.rows, c.shares = append(c.rows, metadata.NewEntryBuilder(c.s.g.now())), append(c.shares, nil)
			n++
		}
		sequence := c.s.journal.Next() + uint64(n-1)
		folded := h.state.Unfolded() == 0
		if err := h.state.Apply(change, sequence); err != nil {
			return fmt.Errorf("sequencer: %w", err)
		}
		before := c.rows[n-1].Size()
		c.rows[n-1].Add(change)
		c.s.g.meters.decided(change)
		if litters(change) {
			c.litter++
		}
		c.shares[n-1] = bill.AddShare(c.shares[n-1], change.Partition.Topic, int64(c.rows[n-1].Size()-before))
		if !h.dirty {
			h.dirty = true
			c.dirty = append(c.dirty, h)
		}
		if folded {
			c.s.unfolded.push(h)
		}
	}
	c.s.g.meters.answeredAgain(&verdict, h.from)
	c.answers = append(c.answers, pendingAnswer{t, verdict, err})
	if h.state.Closed() {
		c.closed = append(c.closed, h)
	}
	return nil
}

// askers are the topics that were asked about, each by how often.
func (c *cycle) askers() (shares []bill.Share) {
	for i := range c.answers {
		shares = bill.AddShare(shares, c.answers[i].ticket.partition.Topic, 1)
	}
	return shares
}

// owe notes whose entries a trim will remove.
func (s *sequencer) owe(shares []bill.Share) {
	for _, share := range shares {
		s.owed[share.Topic] += share.Weight
	}
}

// settleOwed gives a trim to those whose entries were committed since the last one. Its own are
// older by a few rows.
func (s *sequencer) settleOwed() []bill.Share {
	shares := make([]bill.Share, 0, len(s.owed))
	for topic, weight := range s.owed {
		shares = append(shares, bill.Share{Topic: topic, Weight: weight})
	}
	clear(s.owed)
	return shares
}

// refusedAll is what [seeded.RefusalInMemory] is about.
func refusedAll(v *metadata.Verdict) bool {
	return len(v.Batches) > 0 && !slices.ContainsFunc(v.Batches, func(b metadata.BatchVerdict) bool { return b.Outcome == metadata.Accepted })
}

// park keeps a ticket until what it waits for may have come.
func (c *cycle) park(h *held, t *ticket) {
	h.parked = append(h.parked, t)
	c.s.parked[h] = struct{}{}
}

// isGone says that nobody waits for the ticket. What it asks for will be asked again.
func (t *ticket) isGone() bool {
	select {
	case <-t.gone:
		return true
	default:
		return false
	}
}

// unpark judges parked tickets again, as long as that gets any further.
func (c *cycle) unpark() error {
	for h := range c.s.parked {
		if h.handing {
			continue
		}
		for progress := true; progress && len(h.parked) > 0; {
			parked, before := h.parked, len(c.answers)
			h.parked = nil
			for i, t := range parked {
				if t.isGone() {
					continue
				}
				if err := c.decide(h, t); err != nil {
					abandon(parked[i:], err)
					return err
				}
			}
			progress = len(c.answers) > before
		}
		if len(h.parked) == 0 {
			delete(c.s.parked, h)
		}
	}
	return nil
}

// acquire takes a partition in the background.
func (s *sequencer) acquire(ctx context.Context, id metadata.PartitionID) {
	s.outstanding++
	journal := s.journal.Snapshot()
	go func() {
		a := acquisition{id: id}
		select {
		case s.slots <- struct{}{}:
			a.state, a.lease, a.err = s.tryAcquire(ctx, id, journal)
			<-s.slots
		case <-ctx.Done():
			a.err = context.Cause(ctx)
		}
		select {
		case s.acquired <- a:
		case <-ctx.Done():
		}
	}()
}

// tryAcquire takes a partition, or says why not: [elsewhere] when another gateway has it, or should.
func (s *sequencer) tryAcquire(ctx context.Context, id metadata.PartitionID, journal *metadata.Journal) (*metadata.Partition, *metadata.Lease, error) {
	for {
		state, lease, err := metadata.AcquireIf(ctx, s.g.table, id, journal, func(l *metadata.Lease) error { return s.mayAcquire(ctx, id, l) }, s.readSealed)
		if errors.Is(err, metadata.ErrConflict) {
			continue
		}
		if err == nil && !s.g.config.Exclusive && !seeded.Has(seeded.SkipRefresh) {
			// Whom the row no longer names may be closed since: see to it that we know before
			// anything of them is judged.
			err = s.g.members.refresh(ctx)
		}
		if err == nil && state.Next() == 0 && !state.Closed() {
			err = s.refuseRemoved(ctx, id, lease)
		}
		return state, lease, err
	}
}

// refuseRemoved gives a partition back that has no records because its topic was deleted and its rows are gone. It is
// asked once our row stands, and before anything is judged: whoever was held up for long between reading that there is no
// row and putting one would not know otherwise. Another one may have put a row and been fenced before it asked.
func (s *sequencer) refuseRemoved(ctx context.Context, id metadata.PartitionID, lease *metadata.Lease) error {
	removed, err := metadata.IsRemoved(ctx, s.g.table, id.Topic)
	if err != nil || !removed {
		return err
	}
	if err := lease.Abandon(ctx, s.g.table); err != nil {
		return err
	}
	return metadata.ErrClosed
}

// mayAcquire says whether a partition that this gateway does not hold is its own to take.
func (s *sequencer) mayAcquire(ctx context.Context, id metadata.PartitionID, l *metadata.Lease) error {
	if l != nil && !l.Released {
		if holder := l.Journal; s.g.members.lives(holder) {
			return &elsewhere{holder}
		}
	}
	for try := 0; ; try++ {
		winner := s.g.members.winner(id)
		if winner == s.t.id || winner == "" && s.g.config.Role != metadata.RoleCompactor {
			return nil
		}
		if try == 1 {
			return &elsewhere{winner}
		}
		// Whoever sent it here may know of somebody that we don't: agree on who lives.
		if err := s.g.members.refresh(ctx); err != nil {
			return err
		}
	}
}

// take begins to sequence a partition, or tells those who wait why not.
func (s *sequencer) take(a acquisition) {
	s.outstanding--
	h := s.parts[a.id]
	if a.err != nil {
		delete(s.parts, a.id)
		for _, t := range h.parked {
			t.done(metadata.Verdict{}, a.err)
		}
		if errors.Is(a.err, metadata.ErrClosed) {
			h.shared.end()
			s.forgotten(a.id)
		}
		return
	}
	h.state, h.lease, h.acquiring, h.from = a.state, a.lease, false, a.state.Next()
	h.noted = h.from
	s.forgetClosed(h)
	s.holding.Add(1)
	h.shared.own(h.state.View())
	s.g.router.learn(a.id, "") // wherever it was
	if len(h.parked) > 0 {
		s.parked[h] = struct{}{}
	}
	if winner := s.g.members.winner(a.id); s.leaving != nil || winner != s.t.id && winner != "" {
		s.queueHandover(h) // who lives has changed meanwhile
	}
}

// forgetClosed drops what a partition remembers of uploaders that are gone for ever.
func (s *sequencer) forgetClosed(h *held) {
	for _, id := range h.state.Uploaders() {
		if !s.g.members.takesFrom(id) { // it had a row when it was judged
			h.state.Forget(id)
		}
	}
}

// readSealed gives what a predecessor's journal still holds, sealing it first.
func (s *sequencer) readSealed(ctx context.Context, id metadata.GatewayID) (*metadata.SealedJournal, error) {
	s.sealedMu.Lock()
	entry := s.sealed[id]
	if entry == nil {
		entry = &sealing{turn: make(chan struct{}, 1)}
		s.sealed[id] = entry
	}
	s.sealedMu.Unlock()
	select {
	case entry.turn <- struct{}{}:
		defer func() { <-entry.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if entry.journal != nil {
		return entry.journal, nil
	}
	if err := s.g.members.mayTakeFrom(ctx, id); err != nil {
		return nil, err
	}
	if _, err := metadata.Seal(ctx, s.g.table, id, s.t.id); err != nil {
		return nil, err
	}
	journal, err := s.g.journals.Sealed(ctx, id)
	if err != nil {
		return nil, err
	}
	entry.journal = journal
	return journal, nil
}

// moved forgets a predecessor's journal, when nothing rests on it any more.
func (s *sequencer) moved(id metadata.GatewayID) {
	s.sealedMu.Lock()
	defer s.sealedMu.Unlock()
	delete(s.sealed, id)
}

// forget lets go of a partition that is closed for ever, once a checkpoint has all of it.
// Should somebody ask again, it is read from there.
func (s *sequencer) forget(h *held) {
	id := h.state.ID()
	if _, writing := s.writing[h]; writing || h.handing || !h.state.Closed() || h.state.Unfolded() != 0 || len(h.parked) > 0 || s.parts[id] != h {
		return
	}
	s.drop(h)
}

// drop takes a partition that is closed off the lists.
func (s *sequencer) drop(h *held) {
	id := h.state.ID()
	delete(s.parts, id)
	delete(s.parked, h)
	delete(s.due, h)
	s.holding.Add(-1)
	h.shared.disown()
	s.forgotten(id)
}

func (s *sequencer) forgotten(id metadata.PartitionID) {
	s.g.partitions.release(id)
	s.t.intake.forget(spanOf(id))
	s.g.router.forget(id)
}

// fail answers everything that still waits.
func (s *sequencer) fail(err error) {
	if err == nil {
		err = errStopped
	}
	s.mu.Lock()
	s.closed = err
	queue := s.queue
	s.queue = nil
	s.mu.Unlock()
	for _, h := range s.parts {
		queue = append(queue, h.parked...)
		if !h.acquiring {
			h.shared.disown()
		}
	}
	s.holding.Store(0)
	s.passBarriers(err)
	for _, t := range queue {
		t.done(metadata.Verdict{}, err)
	}
}

// leave ends the sequencer in good order: everything checkpointed, the journal
// trimmed and sealed.
func (s *sequencer) leave(ctx context.Context) error {
	request := leaveRequest{ctx: ctx, done: make(chan error, 1)}
	s.quit <- request
	select {
	case err := <-request.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finish writes the last checkpoints and seals the journal, in the owner's goroutine.
func (s *sequencer) finish(ctx context.Context) error {
	group, writing := errgroup.WithContext(ctx)
	group.SetLimit(checkpointsAtOnce)
	for _, h := range s.parts {
		if h.state.Unfolded() == 0 {
			continue
		}
		plan := h.state.Checkpoint(h.lease, s.journal.Next()-1, false)
		group.Go(func() error {
			if err := plan.Write(writing, s.g.table, h.lease); err != nil {
				return err
			}
			s.g.meters.checkpointed(plan.Writes(), int64(plan.Bytes()))
			if err := plan.Clean(writing, s.g.table); err != nil { // a later trim takes them along
				s.g.log.Warn("rows that an index no longer needs were left behind", "error", err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return s.journal.Leave(bill.Shared(ctx, s.settleOwed()))
}
