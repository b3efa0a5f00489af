package gateway

import (
	"context"
	"fmt"
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
