package gateway

import (
	"context"
	"errors"

	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
)

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
