package gateway

import (
	"context"
	"errors"
	"fmt"

	"github.com/varvelog/varve/metadata"
)

// swapping is a swap that is asked for, and what became of it.
type swapping struct {
	*metadata.Swap
	// altered: the topic has, or may have, other settings than those that it went by. It is refused, for good.
	altered bool
	outcome metadata.SwapOutcome
}

func (s *swapping) judge(p *metadata.Partition) (*metadata.Change, error) {
	judge := p.JudgeSwap
	if s.altered {
		judge = p.RefuseSwap
	}
	outcome, change, err := judge(s.Swap)
	s.outcome = outcome
	return change, err
}

// answered takes another gateway's answer.
func (s *swapping) answered(outcome uint32) error {
	s.outcome = metadata.SwapOutcome(outcome)
	if s.outcome < metadata.Swapped || s.outcome > metadata.SwapForgotten {
		return fmt.Errorf("%w: %d is no outcome of a swap", metadata.ErrCorrupt, outcome)
	}
	return nil
}

// meets makes sure that a compactor is known, and refuses one that has ended: what it asks for may name objects
// that were collected.
func (s *sequencer) meets(ctx context.Context, uploader metadata.GatewayID) error {
	if !s.g.members.knows(uploader.Owner()) {
		if err := s.g.members.refresh(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Swap has index entries replaced by whoever sequences the partition, and returns what came of it. It is asked for until
// the answer is definite or ctx ends: then, and only then, a compactor must take its number for unsettled. ErrClosed:
// the partition is closed, or nothing is taken from the uploader any more; nothing will be swapped.
func (g *Gateway) Swap(ctx context.Context, w *metadata.Swap) (metadata.SwapOutcome, error) {
	pauses := metadata.DefaultBackOff()
	var under *settings
	if w.Topic != "" {
		under = &settings{w.Topic, w.TopicStamp}
	}
	doubt := false // an earlier try may have been taken, or may be yet
	for {
		s := &swapping{Swap: w}
		_, again, err := g.router.decideOnce(ctx, w.Partition, decision{swap: s, under: under})
		var closed *uploaderClosed
		switch {
		case err == nil:
			return s.outcome, nil
		case errors.As(err, &closed):
			return 0, fmt.Errorf("%w: %w", metadata.ErrClosed, err)
		case errors.Is(err, metadata.ErrClosed): // that is told once it stands: whatever came of an earlier try, none comes to anything now
			return 0, err
		case again, errors.Is(err, metadata.ErrUnknown), errors.Is(err, errStopped):
			doubt = doubt || !errors.Is(err, metadata.ErrHeld)
		case doubt:
			return 0, fmt.Errorf("%w: swap in %s: an earlier try may have been taken: %v", metadata.ErrUnknown, w.Partition, err)
		default:
			return 0, err
		}
		if pauseErr := pause(ctx, pauses); pauseErr != nil {
			return 0, fmt.Errorf("%w: swap in %s: %w; last: %w", metadata.ErrUnknown, w.Partition, pauseErr, err)
		}
	}
}
