package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
)

// foldLimits say when partitions are checkpointed: when the journal holds more rows and
// more bytes than this that no checkpoint has, those whose changes are oldest are. Where more partitions have
// changes than would be worth a checkpoint by then, the journal may grow to most bytes. trim
// is how many rows the journal sheds at a time.
type foldLimits struct {
	rows, bytes, most int
	trim              uint64
}

const (
	// worthFolding is how many bytes the journal holds for each partition with changes before their
	// checkpoints cost no more than those commits did: a checkpoint's lease row is a write unit of its own,
	// and its pages take somewhat less than half of the commits.
	worthFolding = 2560
	// foldStretch is by how much the journal may outgrow what it holds of few partitions: to 32 MiB. Who takes
	// over from this gateway, or reads, then reads that much, once for all partitions (metadata.Journals), and folds it.
	foldStretch = 8
	// trimBytes is how many bytes the journal sheds at a time, where its rows are long.
	trimBytes = 4 << 20
)

// full is how many bytes the journal holds before so many partitions with changes are checkpointed.
func (f *foldLimits) full(partitions int) int {
	return max(f.bytes, min(f.most, partitions*worthFolding))
}

type checkpointed struct {
	held *held
	plan *metadata.Checkpoint
	err  error
	// gone: the partition was closed, and its rows were removed with its topic.
	gone bool
}

// noteDue notes a partition whose checkpoint should be written soon: nothing else may come that would remind of it.
func (s *sequencer) noteDue(h *held) {
	if h.state.Due() && !h.handing {
		s.due[h] = struct{}{}
	}
}

// checkpoint starts checkpoints of the partitions for which it is due, and of those whose changes are oldest while
// the journal holds too much that no checkpoint has.
func (s *sequencer) checkpoint(ctx context.Context) {
	if time.Since(s.failed) < checkpointPause {
		if len(s.due) > 0 && s.retry == nil {
			s.retry = time.After(checkpointPause)
		}
		return
	}
	for h := range s.due {
		delete(s.due, h)
		if _, writing := s.writing[h]; !writing && !h.handing && h.state.Due() && s.parts[h.state.ID()] == h {
			s.write(ctx, h)
		}
	}
	for s.rows.count() > s.fold.rows && s.rows.bytes > s.fold.full(s.unfolded.count()+len(s.writing)) && len(s.writing) < 2*checkpointsAtOnce {
		h := s.oldestUnfolded()
		if h == nil || h.state.Unfolded() > s.rows.first+uint64(s.rows.count())/4 {
			return // the oldest quarter is under way already
		}
		s.write(ctx, h)
	}
}

// oldestUnfolded is the partition whose first change that no checkpoint has is the
// oldest, of those whose checkpoint is not being written; nil without one.
func (s *sequencer) oldestUnfolded() *held {
	return s.unfolded.oldest(func(h *held) bool {
		_, writing := s.writing[h]
		return !writing
	})
}

// write plans a checkpoint and writes it in the background.
func (s *sequencer) write(ctx context.Context, h *held) { s.checkpointTo(ctx, h, false) }

// release writes the checkpoint that lets another gateway take the partition.
func (s *sequencer) release(ctx context.Context, h *held) {
	s.releasing[h] = struct{}{}
	s.checkpointTo(ctx, h, true)
}

func (s *sequencer) checkpointTo(ctx context.Context, h *held, release bool) {
	s.writing[h] = h.state.Unfolded()
	if s.writing[h] == 0 { // nothing but the release is new
		s.writing[h] = s.journal.Next()
	}
	s.outstanding++
	s.forgetClosed(h)
	plan := h.state.Checkpoint(h.lease, s.journal.Next()-1, release)
	id, closed := h.state.ID(), h.state.Closed()
	go func() {
		done := checkpointed{held: h, plan: plan}
		select {
		case s.writers <- struct{}{}:
			done.err = plan.Write(ctx, s.g.table, h.lease)
			if closed && errors.Is(done.err, metadata.ErrConflict) {
				_, err := s.g.table.Get(ctx, id.LeaseKey(), metadata.Strong)
				done.gone = errors.Is(err, metadata.ErrNotFound)
			}
			<-s.writers
		case <-ctx.Done():
			done.err = context.Cause(ctx)
		}
		select {
		case s.checkpointed <- done:
		case <-ctx.Done():
			return
		}
		if done.err == nil {
			// Readers know by now that these rows are no longer part of the index.
			if err := plan.Clean(ctx, s.g.table); err != nil && ctx.Err() == nil {
				s.g.log.Warn("rows that an index no longer needs were left behind", "error", err)
			}
		}
	}()
}

// written takes a checkpoint into the state.
func (s *sequencer) written(c checkpointed) error {
	s.outstanding--
	h := c.held
	delete(s.writing, h)
	if c.gone {
		s.removed(h, c.plan)
		return nil
	}
	if c.err != nil {
		h.state.Undone(c.plan)
		s.failed = time.Now()
		if errors.Is(c.err, metadata.ErrConflict) {
			return fmt.Errorf("%w (%w)", metadata.ErrFenced, c.err)
		}
		s.g.log.Warn("checkpoint not written; the journal keeps its entries", "partition", h.state.ID().String(), "error", c.err)
		if h.handing && h.lease.Doubtful() && !seeded.Has(seeded.JudgeAfterRelease) {
			// Another gateway may have taken the partition already: nothing more may be judged
			// here. What this one still has to say it says under another id.
			return fmt.Errorf("%w: it is not known whether %s was released: %w", metadata.ErrFenced, h.state.ID(), c.err)
		}
		if h.handing {
			s.notReleased(h)
		}
	} else {
		h.state.Done(c.plan)
		s.g.meters.checkpointed(c.plan.Writes(), int64(c.plan.Bytes()))
		h.shared.publish(h.state.View())
		if h.handing {
			s.released(h)
			return nil
		}
	}
	if h.state.Unfolded() != 0 {
		s.unfolded.push(h)
	}
	s.noteDue(h)
	s.forget(h)
	return nil
}

// removed lets go of a closed partition whose topic was removed, rows and all, while it was still held here.
func (s *sequencer) removed(h *held, plan *metadata.Checkpoint) {
	h.state.Done(plan)
	delete(s.releasing, h)
	for _, t := range h.parked {
		t.done(metadata.Verdict{}, metadata.ErrClosed)
	}
	h.parked = nil
	s.drop(h)
}

// trimJournal lets go of journal rows that every partition has checkpointed.
func (s *sequencer) trimJournal(ctx context.Context) {
	oldest := s.journal.Next()
	if h := s.oldestUnfolded(); h != nil {
		oldest = h.state.Unfolded()
	}
	for _, since := range s.writing {
		oldest = min(oldest, since)
	}
	s.untrimmed += s.rows.dropBelow(oldest)
	through := min(oldest-1, s.journal.Next()-2)
	if s.trimming || s.journal.Next() < 3 || through < s.trimmedTo+s.fold.trim && (s.untrimmed < trimBytes || through <= s.trimmedTo) {
		return
	}
	s.trimming, s.trimmedTo, s.untrimmed = true, through, 0
	s.outstanding++
	paid := bill.Shared(ctx, s.settleOwed())
	go func() {
		err := metadata.TrimJournal(paid, s.g.table, s.t.id, through)
		select {
		case s.trimmed <- err:
		case <-ctx.Done():
		}
	}()
}

// trimEnded notes that a trim of the journal has ended.
func (s *sequencer) trimEnded(err error) {
	s.outstanding--
	s.trimming = false
	if err != nil {
		s.g.log.Warn("journal not trimmed; it will be tried again", "error", err)
	}
}
