package client

import "context"

// resolve turns the consumer's places into offsets, once, so that a connection made again goes on with
// the same ones: the latest offset of a later moment would leave records out. Only the earliest stays
// what it is until the first answer, since it moves up with retention.
func (k *Consumer) resolve(ctx context.Context) ([]cursor, error) {
	query := LatestOffset()
	query.linearizable = k.cfg.Linearizable
	latest, err := k.c.ListOffsets(ctx, k.cfg.Topic, query, k.cfg.Partitions...)
	if err != nil {
		return nil, err
	}
	times := timeLookups{k: k, ends: make(map[int32]int64), answers: make(map[int64]map[int32]PartitionOffset)}
	for _, o := range latest {
		times.ends[o.Partition] = o.EndOffset
	}
	cursors := make([]cursor, 0, len(latest))
	for _, o := range latest {
		place, ok := k.cfg.Starts[o.Partition]
		if !ok {
			place = k.cfg.Start
		}
		c := cursor{partition: o.Partition, seen: o.EndOffset}
		if c.next, err = times.offset(ctx, place, o, fromEarliest); err != nil {
			return nil, err
		}
		if c.end, err = times.offset(ctx, k.cfg.End, o, withoutEnd); err != nil {
			return nil, err
		}
		if k.cfg.End.kind == placeEarliest || c.next == fromEarliest && c.end == o.StartOffset {
			c.next, c.end = o.StartOffset, o.StartOffset // Nothing to read.
		}
		cursors = append(cursors, c)
	}
	return cursors, nil
}

// timeLookups asks for each time once.
type timeLookups struct {
	k *Consumer
	// ends of the partitions that were told already: no answer may be of a time before.
	ends    map[int32]int64
	answers map[int64]map[int32]PartitionOffset
}

// offset resolves a place in a partition, whose ends are in latest. unset is for a place that is unset,
// or the earliest.
func (t *timeLookups) offset(ctx context.Context, p Place, latest PartitionOffset, unset int64) (int64, error) {
	switch p.kind {
	case placeOffset:
		return p.value, nil
	case placeLatest:
		return latest.EndOffset, nil
	case placeBeforeEnd:
		return max(latest.StartOffset, latest.EndOffset-p.value), nil
	case placeTime:
		return t.atOrAfter(ctx, p.value, latest.Partition)
	default:
		return unset, nil
	}
}

func (t *timeLookups) atOrAfter(ctx context.Context, ms int64, partition int32) (int64, error) {
	byPartition, ok := t.answers[ms]
	if !ok {
		offsets, err := t.k.c.listOffsets(ctx, t.k.cfg.Topic, offsetAtOrAfterMilli(ms), t.k.cfg.Partitions, t.check)
		if err != nil {
			return 0, err
		}
		byPartition = make(map[int32]PartitionOffset, len(offsets))
		for _, o := range offsets {
			byPartition[o.Partition] = o
		}
		t.answers[ms] = byPartition
	}
	o, ok := byPartition[partition]
	if !ok {
		err := invalidf("the server left the partition out of its answer")
		err.Topic, err.Partition = t.k.cfg.Topic, partition
		return 0, err
	}
	if !o.Found {
		return o.EndOffset, nil
	}
	return o.Offset, nil
}

// check finds an answer that is behind.
func (t *timeLookups) check(offsets []PartitionOffset) *Error {
	for _, o := range offsets {
		if seen := t.ends[o.Partition]; o.EndOffset < seen {
			return behind(t.k.cfg.Topic, o.Partition, o.EndOffset, seen)
		}
	}
	return nil
}
