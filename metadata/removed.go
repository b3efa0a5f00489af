package metadata

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// RemovedTopic is a row about a topic that was deleted. It is there from before the topic's name is free,
// and stays: whoever takes or reads a partition that has no lease row looks for it. So
// the partitions' rows can go, closed lease rows too, and late appends still meet a closed partition.
type RemovedTopic struct {
	ID         TopicID
	Name       string // that it had
	Partitions int32
	// Swept: its partitions had no rows left, and the gateways that were not closed then were Waits.
	// Once all of them are closed nothing more is written, and the last look at the partitions is taken: then it is Done.
	Swept, Done bool
	Waits       []GatewayID
	Stamp       Stamp
}

type removedRow struct {
	Format     int         `json:"format"`
	Name       string      `json:"name"`
	Partitions int32       `json:"partitions"`
	Swept      bool        `json:"swept,omitempty"`
	Done       bool        `json:"done,omitempty"`
	Waits      []GatewayID `json:"waits,omitempty"`
}

// RemovedRange is where the rows about deleted topics are.
func RemovedRange() Range { return Range{Partition: removedPartition} }

func removedKey(id TopicID) Key { return Key{removedPartition, id.String()} }

func (r *RemovedTopic) row() removedRow {
	return removedRow{Format: formatV1, Name: r.Name, Partitions: r.Partitions, Swept: r.Swept, Done: r.Done, Waits: r.Waits}
}

func decodeRemoved(row Row) (RemovedTopic, error) {
	var r removedRow
	if err := decodeJSON(row, &r); err != nil {
		return RemovedTopic{}, err
	}
	id, err := ParseTopicID(row.Sort)
	if err == nil {
		err = checkPartitions(r.Partitions)
	}
	if err != nil {
		return RemovedTopic{}, fmt.Errorf("%w: row %s: %v", ErrCorrupt, row.Key, err)
	}
	return RemovedTopic{ID: id, Name: r.Name, Partitions: r.Partitions, Swept: r.Swept, Done: r.Done, Waits: r.Waits, Stamp: row.Stamp}, nil
}

// NoteRemoved writes the row of a topic whose partitions are closed. It is no error when it is there.
func NoteRemoved(ctx context.Context, t Table, topic *Topic) error {
	_, err := update(ctx, t, removedKey(topic.ID), func(was Row) (any, error) {
		if was.Stamp != (Stamp{}) {
			return nil, nil
		}
		r := RemovedTopic{Name: topic.Name, Partitions: topic.Partitions}
		return r.row(), nil
	})
	if err != nil {
		return fmt.Errorf("note that topic %q is removed: %w", topic.Name, err)
	}
	return nil
}

// IsRemoved says whether a topic was deleted. A strong read.
func IsRemoved(ctx context.Context, t Table, id TopicID) (bool, error) {
	_, err := t.Get(ctx, removedKey(id), Strong)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// ListRemoved returns the topics that were deleted, by id; of those that are Done nothing is left.
func ListRemoved(ctx context.Context, t Table) ([]RemovedTopic, error) {
	var list []RemovedTopic
	for row, err := range Rows(ctx, t, Range{Partition: removedPartition, Consistency: Strong}) {
		if err != nil {
			return nil, fmt.Errorf("list removed topics: %w", err)
		}
		r, err := decodeRemoved(row)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

// Topic is the topic as its row in the catalog was, as far as it is known.
func (r *RemovedTopic) Topic() *Topic {
	return &Topic{Name: r.Name, ID: r.ID, Partitions: r.Partitions, Config: DefaultConfig(), State: topicRemoved}
}

// MarkSwept notes that no partition has rows left, and who could still bring some back: the gateways that are not
// closed now. ErrConflict: somebody else has written the row.
func (r *RemovedTopic) MarkSwept(ctx context.Context, t Table) error {
	gateways, err := ListGateways(ctx, t, Strong, nil)
	if err != nil {
		return err
	}
	next := *r
	next.Swept, next.Waits, next.Stamp.Sequence = true, nil, r.Stamp.Sequence+1
	for _, g := range gateways {
		if g.State != GatewayClosed {
			next.Waits = append(next.Waits, g.ID)
		}
	}
	row := Row{Key: removedKey(r.ID), Stamp: next.Stamp, Nonce: NewNonce(), Value: encodeJSON(next.row())}
	if err := PutSettled(ctx, t, row, IfEqual(r.Stamp), nil); err != nil {
		return err
	}
	*r = next
	return nil
}

// Waiting lists those of Waits that are not closed yet. One without a row is closed.
func (r *RemovedTopic) Waiting(ctx context.Context, t Table) ([]GatewayID, error) {
	gateways, err := ListGateways(ctx, t, Strong, nil)
	if err != nil {
		return nil, err
	}
	var list []GatewayID
	for _, g := range gateways {
		if g.State != GatewayClosed && slices.Contains(r.Waits, g.ID) {
			list = append(list, g.ID)
		}
	}
	return list, nil
}

// Finish notes that nothing is left of the topic. The row stays: a process that went on under a new id may still know
// the topic, and have a read or an append of it under way.
func (r *RemovedTopic) Finish(ctx context.Context, t Table) error {
	next := *r
	next.Done, next.Waits, next.Stamp.Sequence = true, nil, r.Stamp.Sequence+1
	row := Row{Key: removedKey(r.ID), Stamp: next.Stamp, Nonce: NewNonce(), Value: encodeJSON(next.row())}
	if err := PutSettled(ctx, t, row, IfEqual(r.Stamp), nil); err != nil {
		return err
	}
	*r = next
	return nil
}

// SweepPartition removes the rows of a partition of a removed topic: of one that is closed, or with final whatever there is. The
// lease row goes last, so that what was cut short goes on where it was. left says that rows are there yet: the lease row does not
// say yet that the partition is closed, and its gateway lives, or somebody wrote one meanwhile.
func (r *RemovedTopic) SweepPartition(ctx context.Context, t Table, number int32, final bool) (left bool, err error) {
	id := PartitionID{r.ID, number}
	lease, err := getOrNone(ctx, t, leaseKey(id))
	if err != nil {
		return true, fmt.Errorf("sweep %s: %w", id, err)
	}
	if lease.Stamp != (Stamp{}) && !final {
		l, err := decodeLease(id, lease)
		if err != nil {
			return true, err
		}
		if !l.state.closed {
			if held, err := isHeld(ctx, t, l.Journal); held || err != nil {
				return true, err
			}
		}
	}
	all := PartitionRows(id)
	all.From = leaseSort + "\x00"
	for row, err := range Rows(ctx, t, all) {
		if err != nil {
			return true, fmt.Errorf("sweep %s: %w", id, err)
		}
		if err := DeleteSettled(ctx, t, row.Key, IfEqual(row.Stamp), nil); errors.Is(err, ErrConflict) {
			left = true
		} else if err != nil {
			return true, fmt.Errorf("sweep %s: %w", id, err)
		}
	}
	if left || lease.Stamp == (Stamp{}) {
		return left, nil
	}
	if err := DeleteSettled(ctx, t, lease.Key, IfEqual(lease.Stamp), nil); errors.Is(err, ErrConflict) {
		return true, nil
	} else if err != nil {
		return true, fmt.Errorf("sweep %s: %w", id, err)
	}
	return false, nil
}

// isHeld says whether a gateway may still write what its lease rows rest on. One that came late and died before it found
// that the topic is gone does not.
func isHeld(ctx context.Context, t Table, id GatewayID) (bool, error) {
	row, err := t.Get(ctx, gatewayKey(id), Strong)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("gateway %s: %w", id, err)
	}
	g, err := decodeGateway(row)
	return g.State != GatewaySealed && g.State != GatewayClosed, err
}

// Abandon removes the lease row of a partition of a removed topic again. Nothing may have been judged.
func (l *Lease) Abandon(ctx context.Context, t Table) error {
	err := DeleteSettled(ctx, t, leaseKey(l.state.id), IfEqual(l.Stamp), nil)
	if errors.Is(err, ErrConflict) {
		return nil // it is gone, or somebody else's to remove
	}
	return err
}
