package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/metadata"
)

const (
	// acquisitions is how many partitions are taken at once.
	acquisitions = 64
	// checkpointsAtOnce is how many checkpoints are written at once.
	checkpointsAtOnce = 32
	// checkpointPause follows a checkpoint that could not be written.
	checkpointPause = time.Second
)

var defaultFoldLimits = foldLimits{rows: 64, bytes: 4 << 20, trim: 64}

// ticket asks for one decision on one partition.
type ticket struct {
	partition metadata.PartitionID
	// decide judges against the state. A change that it returns is applied at once;
	// it is called again later when it returned a verdict that waits, or ErrBusy.
	decide func(*metadata.Partition) (metadata.Verdict, *metadata.Change, error)
	// done is told the verdict, once it is settled. Called from the sequencer's
	// goroutine: it must not block.
	done func(metadata.Verdict, error)
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
}

// sequencer gives batches their offsets. One goroutine owns all of its state and
// works in cycles: take what waits, judge it, put one journal entry, answer.
type sequencer struct {
	g       *Gateway
	journal *metadata.Journal
	parts   map[metadata.PartitionID]*held
	// parked are partitions with tickets that wait for something.
	parked map[*held]struct{}
	// unfolded has the partitions with changes that no checkpoint has, oldest first;
	// writing those whose checkpoint is being written, with their first such change.
	unfolded unfolded
	writing  map[*held]uint64
	rows     journalRows
	fold     foldLimits
	trimming bool
	// trimmedTo is the row up to which the journal was, or is being, trimmed.
	trimmedTo uint64

	acquired     chan acquisition
	checkpointed chan checkpointed
	trimmed      chan error
	slots        chan struct{} // limits acquisitions
	writers      chan struct{} // limits checkpoints
	outstanding  int           // acquisitions, checkpoints, trims
	lastCycle    time.Time
	pending      since     // the table has been asked to commit
	failed       time.Time // when a checkpoint could not be written last

	mu     sync.Mutex
	queue  []*ticket
	closed error
	wake   chan struct{}
	quit   chan leaveRequest

	sealedMu sync.Mutex
	sealed   map[metadata.GatewayID]*sealing
}

// sealing reads a predecessor's sealed journal once for all who ask.
type sealing struct {
	once    sync.Mutex
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

func newSequencer(g *Gateway) *sequencer {
	return &sequencer{
		g: g, parts: make(map[metadata.PartitionID]*held), wake: make(chan struct{}, 1), quit: make(chan leaveRequest, 1),
		parked: make(map[*held]struct{}), writing: make(map[*held]uint64), rows: journalRows{first: 1}, fold: defaultFoldLimits,
		acquired: make(chan acquisition), checkpointed: make(chan checkpointed), trimmed: make(chan error),
		slots: make(chan struct{}, acquisitions), writers: make(chan struct{}, checkpointsAtOnce),
		sealed: make(map[metadata.GatewayID]*sealing),
	}
}

// submit queues tickets. When the sequencer has ended they are answered at once.
func (s *sequencer) submit(tickets ...*ticket) {
	s.mu.Lock()
	closed := s.closed
	if closed == nil {
		s.queue = append(s.queue, tickets...)
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
func (s *sequencer) refer(ref *metadata.Reference, done func(metadata.Verdict, error)) *ticket {
	return &ticket{partition: ref.Partition, done: done,
		decide: func(p *metadata.Partition) (metadata.Verdict, *metadata.Change, error) {
			v, c := p.Judge(ref)
			return v, c, nil
		}}
}

// ask submits one decision and waits for it.
func (s *sequencer) ask(ctx context.Context, id metadata.PartitionID, decide func(*metadata.Partition) (*metadata.Change, error)) error {
	answer := make(chan error, 1)
	s.submit(&ticket{partition: id, done: func(_ metadata.Verdict, err error) { answer <- err },
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

// trim moves the log start up and returns the view after it.
func (s *sequencer) trim(ctx context.Context, id metadata.PartitionID, offset int64) (*metadata.View, error) {
	err := s.ask(ctx, id, func(p *metadata.Partition) (*metadata.Change, error) { return p.JudgeTrim(offset) })
	if err != nil {
		return nil, err
	}
	return s.g.view(ctx, id)
}

// closePartition ends a partition for ever.
func (s *sequencer) closePartition(ctx context.Context, id metadata.PartitionID) error {
	err := s.ask(ctx, id, func(p *metadata.Partition) (*metadata.Change, error) { return p.JudgeClose(), nil })
	if errors.Is(err, metadata.ErrClosed) {
		return nil
	}
	return err
}

// run is the owner. It returns metadata.ErrFenced when the journal was sealed, or
// the context's error.
func (s *sequencer) run(ctx context.Context) (err error) {
	defer func() { s.fail(err) }()
	var leaving *leaveRequest
	for {
		if leaving != nil && s.outstanding == 0 && !s.waiting() {
			err := s.finish(leaving.ctx)
			leaving.done <- err
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case request := <-s.quit:
			leaving = &request
		case a := <-s.acquired:
			s.outstanding--
			s.take(a)
		case c := <-s.checkpointed:
			s.outstanding--
			if err := s.written(c); err != nil {
				return err
			}
		case err := <-s.trimmed:
			s.outstanding--
			s.trimming = false
			if err != nil {
				s.g.log.Warn("journal not trimmed; it will be tried again", "error", err)
			}
		case <-s.wake:
			if err := s.pace(ctx); err != nil {
				return err
			}
		}
		if err := s.cycle(ctx); err != nil {
			return err
		}
		s.checkpoint(ctx)
		s.trimJournal(ctx)
	}
}

// waiting says whether tickets wait for anything.
func (s *sequencer) waiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) > 0
}

// pace spaces cycles, so that commits are no more than the table should bear.
func (s *sequencer) pace(ctx context.Context) error {
	wait := s.g.config.CycleInterval - time.Since(s.lastCycle)
	if wait <= 0 {
		return nil
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
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
	answers []pendingAnswer
	dirty   []*held
	closed  []*held // those that somebody asked about
}

// cycle judges what waits, commits it, and answers.
func (s *sequencer) cycle(ctx context.Context) error {
	s.mu.Lock()
	tickets := s.queue
	s.queue = nil
	s.mu.Unlock()
	c := &cycle{s: s}
	for _, t := range tickets {
		if err := c.take(ctx, t); err != nil {
			return err
		}
	}
	if err := c.unpark(); err != nil {
		return err
	}
	if len(c.answers) == 0 {
		return nil
	}
	s.lastCycle = time.Now()
	size := 0
	s.pending.begin()
	defer s.pending.end()
	for _, row := range c.rows {
		value := row.Encode()
		if _, err := s.journal.Append(ctx, value); err != nil {
			c.abandon(err)
			return err
		}
		s.rows.add(len(value))
		size += len(value)
	}
	if len(c.rows) == 0 {
		// Duplicates and retriable answers rest on no entry of their own: make sure
		// that nobody has taken over meanwhile.
		if err := s.verify(ctx); err != nil {
			c.abandon(err)
			return err
		}
	}
	for _, h := range c.dirty {
		h.dirty = false
		h.shared.publish(h.state.View())
		if _, writing := s.writing[h]; !writing && h.state.Due() && time.Since(s.failed) > checkpointPause {
			s.write(ctx, h)
		}
	}
	for _, a := range c.answers {
		a.ticket.done(a.verdict, a.err)
	}
	for _, h := range c.closed {
		s.forget(h)
	}
	s.g.meters.cycled(len(c.answers), len(c.rows), int64(size))
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

func (c *cycle) take(ctx context.Context, t *ticket) error {
	h := c.s.parts[t.partition]
	if h == nil {
		h = &held{acquiring: true, shared: c.s.g.partitions.get(t.partition)}
		c.s.parts[t.partition] = h
		c.s.acquire(ctx, t.partition)
	}
	if h.acquiring {
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
	if change != nil {
		n := len(c.rows)
		if n == 0 || !c.rows[n-1].Fits(change) {
			c.rows = append(c.rows, metadata.NewEntryBuilder(c.s.g.now()))
			n++
		}
		sequence := c.s.journal.Next() + uint64(n-1)
		folded := h.state.Unfolded() == 0
		if err := h.state.Apply(change, sequence); err != nil {
			return fmt.Errorf("sequencer: %w", err)
		}
		c.rows[n-1].Add(change)
		if !h.dirty {
			h.dirty = true
			c.dirty = append(c.dirty, h)
		}
		if folded {
			c.s.unfolded.push(h)
		}
	}
	c.answers = append(c.answers, pendingAnswer{t, verdict, err})
	if h.state.Closed() {
		c.closed = append(c.closed, h)
	}
	return nil
}

// park keeps a ticket until what it waits for may have come.
func (c *cycle) park(h *held, t *ticket) {
	h.parked = append(h.parked, t)
	c.s.parked[h] = struct{}{}
}

// unpark judges parked tickets again, as long as that gets any further.
func (c *cycle) unpark() error {
	for h := range c.s.parked {
		for progress := true; progress && len(h.parked) > 0; {
			parked, before := h.parked, len(c.answers)
			h.parked = nil
			for _, t := range parked {
				if err := c.decide(h, t); err != nil {
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
			for {
				a.state, a.lease, a.err = metadata.Acquire(ctx, s.g.table, id, journal, s.readSealed)
				if !errors.Is(a.err, metadata.ErrConflict) {
					break
				}
			}
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

// take begins to sequence a partition, or tells those who wait why not.
func (s *sequencer) take(a acquisition) {
	h := s.parts[a.id]
	if a.err != nil {
		delete(s.parts, a.id)
		for _, t := range h.parked {
			t.done(metadata.Verdict{}, a.err)
		}
		return
	}
	h.state, h.lease, h.acquiring = a.state, a.lease, false
	s.forgetClosed(h)
	h.shared.owned.Store(true)
	h.shared.publish(h.state.View())
	if len(h.parked) > 0 {
		s.parked[h] = struct{}{}
	}
}

// forgetClosed drops what a partition remembers of uploaders that are gone for ever.
func (s *sequencer) forgetClosed(h *held) {
	for _, id := range h.state.Uploaders() {
		if s.g.members.isClosed(id) {
			h.state.Forget(id)
		}
	}
}

// readSealed gives what a predecessor's journal still holds, sealing it first.
func (s *sequencer) readSealed(ctx context.Context, id metadata.GatewayID) (*metadata.SealedJournal, error) {
	s.sealedMu.Lock()
	entry := s.sealed[id]
	if entry == nil {
		entry = &sealing{}
		s.sealed[id] = entry
	}
	s.sealedMu.Unlock()
	entry.once.Lock()
	defer entry.once.Unlock()
	if entry.journal != nil {
		return entry.journal, nil
	}
	if err := s.g.members.mayTakeFrom(ctx, id); err != nil {
		return nil, err
	}
	if _, err := metadata.Seal(ctx, s.g.table, id, s.g.id); err != nil {
		return nil, err
	}
	journal, err := metadata.ReadSealed(ctx, s.g.table, id)
	if err != nil {
		return nil, err
	}
	entry.journal = journal
	return journal, nil
}

// moved lets go of the rows of a predecessor's journal, when every partition that
// they were about is held here.
func (s *sequencer) moved(journal *metadata.SealedJournal) {
	s.sealedMu.Lock()
	defer s.sealedMu.Unlock()
	rest := &metadata.SealedJournal{ID: journal.ID, TrimmedTo: journal.Seal - 1, Seal: journal.Seal}
	s.sealed[journal.ID] = &sealing{journal: rest}
}

// forget lets go of a partition that is closed for ever, once a checkpoint has all of it.
// Should somebody ask again, it is read from there.
func (s *sequencer) forget(h *held) {
	id := h.state.ID()
	if _, writing := s.writing[h]; writing || !h.state.Closed() || h.state.Unfolded() != 0 || len(h.parked) > 0 || s.parts[id] != h {
		return
	}
	delete(s.parts, id)
	delete(s.parked, h)
	h.shared.owned.Store(false)
	s.g.partitions.release(id)
	s.g.intake.forget(id)
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
		h.shared.owned.Store(false)
	}
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
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return s.journal.Leave(ctx)
}
