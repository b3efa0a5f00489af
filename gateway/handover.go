package gateway

import (
	"context"
	"errors"
	"time"

	"github.com/varvelog/varve/metadata"
)

// A partition moves between gateways that live by hand-over: its sequencer stops judging,
// writes a checkpoint that releases it, and tells the gateway whose it is. Whoever asks
// meanwhile waits, and is then sent there.

// handoversAtOnce is how many partitions are handed over at a time.
const handoversAtOnce = 32

// findUneven lists the partitions that another gateway should sequence, as things are now.
func (s *sequencer) findUneven() {
	if s.g.config.Exclusive || s.leaving != nil {
		return
	}
	s.handovers = s.handovers[:0]
	for _, h := range s.parts {
		if h.acquiring || h.handing {
			continue
		}
		if winner := s.g.members.winner(h.state.ID()); winner != s.t.id && winner != "" {
			s.handovers = append(s.handovers, h)
		}
	}
}

// handOverAll hands over everything, since this gateway leaves. On a table of its own
// nobody is there to take it: the checkpoints of finish do.
func (s *sequencer) handOverAll() {
	if s.g.config.Exclusive {
		return
	}
	s.handovers = nil
	for _, h := range s.parts {
		s.queueHandover(h)
	}
}

func (s *sequencer) queueHandover(h *held) {
	if !s.g.config.Exclusive && !h.acquiring && !h.handing {
		s.handovers = append(s.handovers, h)
	}
}

// handOver begins as many hand-overs as may be under way.
func (s *sequencer) handOver(ctx context.Context) {
	if s.retry != nil {
		return
	}
	rest := s.handovers[:0]
	for i, h := range s.handovers {
		if len(s.releasing) >= handoversAtOnce {
			rest = append(rest, s.handovers[i:]...)
			break
		}
		if s.parts[h.state.ID()] != h || h.handing {
			continue // it is gone already
		}
		if _, writing := s.writing[h]; writing {
			rest = append(rest, h) // its checkpoint ends, and this is tried again
			continue
		}
		h.handing = true
		s.release(ctx, h)
	}
	clear(s.handovers[len(rest):])
	s.handovers = rest
	s.offer(ctx)
}

// released takes a partition out of the sequencer's hands, once its last checkpoint is
// written, and sends those who wait for it where it goes.
func (s *sequencer) released(h *held) {
	id := h.state.ID()
	delete(s.releasing, h)
	delete(s.parts, id)
	delete(s.parked, h)
	s.holding.Add(-1)
	s.g.meters.handovers.Add(1)
	winner := s.g.members.winner(id)
	h.shared.disown()
	s.g.router.learn(id, winner)
	for _, t := range h.parked {
		t.done(metadata.Verdict{}, &elsewhere{winner})
	}
	if winner != "" && winner != s.t.id {
		s.offers[winner] = append(s.offers[winner], id)
	}
}

// notReleased keeps a partition whose release could not be written.
func (s *sequencer) notReleased(h *held) {
	delete(s.releasing, h)
	h.handing = false
	if len(h.parked) > 0 {
		s.parked[h] = struct{}{}
	}
	s.handovers = append(s.handovers, h)
	s.retry = time.After(checkpointPause)
}

// offer tells gateways that partitions were released for them.
func (s *sequencer) offer(ctx context.Context) {
	for to, ids := range s.offers {
		delete(s.offers, to)
		go func() {
			if err := s.g.peers.take(ctx, to, ids); err != nil && !errors.Is(err, context.Canceled) {
				// They are taken when somebody needs them.
				s.g.log.Debug("a gateway could not be told of partitions that are its own now", "gateway", to, "error", err)
			}
		}()
	}
}
