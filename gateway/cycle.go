package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
)

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
