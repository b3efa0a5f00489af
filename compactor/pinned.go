package compactor

import (
	"context"
	"errors"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

const (
	// pinnedShare is the part of an object that a job of it alone may write again: at least thrice as much is freed by that.
	pinnedShare = 4
	// mostLooks bounds the partitions that are asked whether they still need their part of a merged object.
	mostLooks = 128
)

// pinned says whether a job's object is there for the job's bytes, or little more: then those are written again, so that the object can
// go. Of what a gateway uploaded the other parts are moved by whoever merges them, by the time that this is old; of what was
// merged they may be needed for as long as this, or may have gone with their retention, their topic, or a trim.
func (c *Compactor) pinned(ctx context.Context, p *pass, j *job) (bool, error) {
	e := j.first()
	ctx = bill.Merging(ctx, j.groups[0].stretch.partition.Topic)
	d, err := segments.ReadDirectory(ctx, c.store, c.objectKey(e))
	switch {
	case errors.Is(err, segments.ErrNotFound), errors.Is(err, segments.ErrCorrupt):
		return p.all && !p.dryRun, nil // who asks is told
	case err != nil:
		return false, err
	case pinnedShare*j.bytes > d.Size:
		return false, nil
	case !merged(e):
		return true, nil
	}
	own := make(map[metadata.PartitionID]bool)
	for i := range j.groups {
		own[j.groups[i].stretch.partition] = true
	}
	needed, looks := j.bytes, 0
	for i := range d.Spans {
		span := &d.Spans[i]
		id := metadata.PartitionID{Topic: metadata.TopicID(span.Topic), Number: span.Partition}
		if own[id] || p.topics[id.Topic] == nil {
			continue
		}
		if looks++; looks > mostLooks {
			return false, nil
		}
		needs, err := c.needs(ctx, id, e, span)
		if err != nil {
			return false, err
		}
		if needs {
			needed += span.Length
		}
		if pinnedShare*needed > d.Size {
			return false, nil
		}
	}
	return true, nil
}

// first is the first entry of a job that has bytes.
func (j *job) first() *metadata.Entry {
	for i := range j.groups {
		entries := j.groups[i].entries()
		for k := range entries {
			if entries[k].Length > 0 {
				return &entries[k]
			}
		}
	}
	return nil
}

// needs says whether a partition's index names the object of an entry of another one, in which it has a span.
func (c *Compactor) needs(ctx context.Context, id metadata.PartitionID, e *metadata.Entry, span *segments.Span) (bool, error) {
	for attempt := 0; ; attempt++ {
		v, err := c.cluster.View(ctx, id)
		if err != nil || v.Closed {
			return false, err
		}
		named, err := namedWithin(ctx, c.index, v, []held{spanOf(0, span)})
		if errors.Is(err, metadata.ErrIndexMoved) && attempt < swapTries {
			if err := pause(ctx, movedPause); err != nil {
				return false, err
			}
			continue
		}
		return err != nil || named.Has(e.Gateway, e.Number), err
	}
}
