package verify

import (
	"context"
	"errors"
	"fmt"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// remove deletes orphans for which everything still speaks: nothing is broken, the uploader is
// closed, and none of the partitions in the object names it now.
func (v *verifier) remove(ctx context.Context, list []*orphan) error {
	if _, broken := v.broken(); broken {
		for _, o := range list {
			o.keep(staysWhileBroken)
		}
		return nil
	}
	within := make(map[metadata.PartitionID][]*orphan)
	for _, o := range list {
		partitions, err := v.partitionsOf(ctx, o)
		if err != nil {
			return err
		}
		for _, id := range partitions {
			within[id] = append(within[id], o)
		}
	}
	for id, orphans := range within {
		if err := v.spare(ctx, id, orphans); err != nil {
			return err
		}
	}
	for _, o := range list {
		if o.Stays != "" {
			continue
		}
		if err := v.Store.Delete(ctx, o.Object); err != nil {
			return fmt.Errorf("remove %s: %w", o.Object, err)
		}
		o.Repaired = true
	}
	return nil
}

// partitionsOf lists the partitions in an object of a closed uploader; none: it must stay, and the orphan says why.
func (v *verifier) partitionsOf(ctx context.Context, o *orphan) ([]metadata.PartitionID, error) {
	row, err := v.Table.Get(ctx, o.gateway.Owner().RowKey(), metadata.Strong)
	switch {
	case errors.Is(err, metadata.ErrNotFound): // it ended, by the seal of its journal
	case err != nil:
		return nil, fmt.Errorf("gateway %s: %w", o.gateway, err)
	default:
		if g, err := metadata.DecodeGateway(row); err != nil || g.State != metadata.GatewayClosed {
			o.keep(staysOfOpenGateway)
			return nil, nil
		}
	}
	directory, err := segments.ReadDirectory(ctx, v.Store, o.Object)
	if errors.Is(err, segments.ErrNotFound) || errors.Is(err, segments.ErrCorrupt) || errors.Is(err, segments.ErrVersion) {
		o.keep(staysUnreadable)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(directory.Spans) == 0 {
		o.keep(staysUnreadable)
	}
	partitions := make([]metadata.PartitionID, len(directory.Spans))
	for i := range directory.Spans {
		partitions[i] = metadata.PartitionID{Topic: metadata.TopicID(directory.Spans[i].Topic), Number: directory.Spans[i].Partition}
	}
	return partitions, nil
}

// spare keeps those orphans that a partition names after all, and all of them if it cannot be read
// or moves. The catalog is not asked alone: a topic that is not in it is deleted only if the
// partition is closed.
func (v *verifier) spare(ctx context.Context, id metadata.PartitionID, orphans []*orphan) error {
	keep := func() {
		for _, o := range orphans {
			o.keep(fmt.Sprintf("partition %s, which is in it, cannot be read in one piece", id))
		}
	}
	view, err := metadata.ReadView(ctx, v.Table, id)
	if errors.Is(err, metadata.ErrHole) || errors.Is(err, metadata.ErrCorrupt) {
		keep()
		return nil
	}
	if err != nil {
		return err
	}
	if t := v.topics[id.Topic]; view.Closed && (t == nil || t.Removed()) {
		return nil
	}
	index := metadata.TableIndex{Table: v.Table}
	for offset := view.Start; offset < view.Next; {
		entries, err := view.Entries(ctx, index, offset)
		if errors.Is(err, metadata.ErrIndexMoved) || errors.Is(err, metadata.ErrCorrupt) || err == nil && len(entries) == 0 {
			keep()
			return nil
		}
		if err != nil {
			return err
		}
		for i := range entries {
			for _, o := range orphans {
				if entries[i].Gateway == o.gateway && entries[i].Number == o.number {
					o.keep(fmt.Sprintf("partition %s names it", id))
				}
			}
		}
		offset = entries[len(entries)-1].End
	}
	return nil
}
