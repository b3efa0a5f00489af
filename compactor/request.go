package compactor

import (
	"context"
	"fmt"

	"github.com/varvelog/varve/metadata"
)

// request asks for a pass over everything that is this compactor's, at once and whatever its age.
type request struct {
	topic  string // "": all
	dryRun bool
	done   chan answer
}

// errEnded answers requests when Run has ended, or ends. Another one has the partitions then, or the same after a restart.
var errEnded error = ended{}

type ended struct{}

func (ended) Error() string { return "compactor: it has stopped" }

// Is says what callers do about it.
func (ended) Is(target error) bool { return target == metadata.ErrBusy }

type answer struct {
	report Report
	err    error
}

// Compact has one pass made now, after the one that may be under way: over a topic, or all ("") of those partitions that are
// this compactor's. With dryRun nothing is read but the index, and nothing written. metadata.ErrTopicNotFound.
// After another error something may have been merged.
func (c *Compactor) Compact(ctx context.Context, topic string, dryRun bool) (Report, error) {
	r := &request{topic: topic, dryRun: dryRun, done: make(chan answer, 1)}
	select {
	case c.requests <- r:
	case <-c.ended:
		return Report{}, errEnded
	case <-ctx.Done():
		return Report{}, context.Cause(ctx)
	}
	select {
	case a := <-r.done:
		return a.report, a.err
	case <-ctx.Done():
		return Report{}, context.Cause(ctx)
	}
}

// serve answers a request.
func (c *Compactor) serve(ctx context.Context, r *request) {
	p := &pass{all: true, dryRun: r.dryRun}
	err := c.list(ctx, p)
	if err == nil {
		err = c.choose(p, r.topic)
	}
	if err == nil {
		c.pass(ctx, p)
	}
	if ctx.Err() != nil {
		err = errEnded // why is this process's affair
	}
	r.done <- answer{p.Report, err}
}

// choose has a pass look at all partitions of a topic, or of all topics, that are this compactor's.
func (c *Compactor) choose(p *pass, topic string) error {
	found := topic == ""
	for _, t := range p.topics {
		if topic != "" && t.Name != topic {
			continue
		}
		found = true
		for n := range t.Partitions {
			if id := (metadata.PartitionID{Topic: t.ID, Number: n}); c.cluster.Merges(id) {
				p.partitions = append(p.partitions, id)
			}
		}
	}
	if !found {
		return fmt.Errorf("%w: there is no topic %q", metadata.ErrTopicNotFound, topic)
	}
	return nil
}
