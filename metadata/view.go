package metadata

import (
	"context"
	"fmt"

	"github.com/varvelog/varve/internal/seeded"
)

// View is an immutable picture of a partition as readers may see it. The index is
// Levels, highest level first in offset order, then Tail: Levels[0] are pages,
// Levels[n] are nodes of tree/n, whose children are those of the level below.
type View struct {
	Partition PartitionID
	Epoch     uint64
	// Stamp orders views of a partition: (epoch, number of the epoch's journal up to which
	// the view shows all changes). Zero before the first append.
	Stamp  Stamp
	Start  int64 // log start offset
	Next   int64 // high watermark: offset after the last committed record
	Levels [][]Child
	Tail   []Entry
	Bytes  int64 // of batches between Start and Next, whole entries counted
	Fence  string
	Closed bool
	// Swaps counts the swaps of index entries: what two views with the same count show of the same offsets is the same.
	Swaps uint64
	room  *room // of a view that another follows on: see Follow
}

// paged is the offset at which Tail begins.
func (v *View) paged() int64 {
	if len(v.Tail) > 0 {
		return v.Tail[0].First
	}
	return v.Next
}

// Newer says that v may replace than: it shows as much or more. With equal stamps both show
// the same, and v may have moved entries into pages. The nil view is older than any.
func (v *View) Newer(than *View) bool {
	switch {
	case than == nil || v.removed():
		return true
	case than.removed():
		return false
	}
	return v.Stamp.Compare(than.Stamp) >= 0
}

// removed says that the partition's topic was deleted and its rows are gone: nothing comes after that.
func (v *View) removed() bool { return v.Closed && v.Stamp == (Stamp{}) }

// ReadView returns what readers may see of a partition as of a moment after the call, by
// strong reads of the table alone, whether its owner lives or not. It writes nothing. A
// partition that nobody has appended to is empty. ErrHole when its journal lost a row. Who reads many
// partitions has [Journals] read what they share once.
func ReadView(ctx context.Context, t Table, id PartitionID) (*View, error) {
	view, _, err := readView(ctx, t, id, func(l *Lease) (*SealedJournal, bool, error) {
		from, _, err := readJournal(ctx, t, l.Source(), l.Through, 1)
		return from, false, err
	})
	return view, err
}

// readView reads a partition's lease row, and folds what the journal of its source holds after the checkpoint. Of what
// was trimmed nothing is missing: every partition had checkpointed it. final says that the journal had
// ended, and was read, before the lease row was.
func readView(ctx context.Context, t Table, id PartitionID, journal func(*Lease) (from *SealedJournal, final bool, err error)) (*View, *Lease, error) {
	for {
		row, err := getOrNone(ctx, t, leaseKey(id))
		if err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", id, err)
		}
		if row.Stamp == (Stamp{}) {
			view, err := orRemoved(ctx, t, NewPartition(id).View())
			return view, nil, err
		}
		lease, err := decodeLease(id, row)
		if err != nil {
			return nil, nil, err
		}
		if lease.Released {
			view, err := orRemoved(ctx, t, lease.View())
			return view, lease, err
		}
		from, final, readErr := journal(lease)
		var view *View
		if readErr == nil {
			view, readErr = lease.Folded(from)
		}
		// Whatever was found, or not, is about this partition only if the lease row
		// stood all the while.
		stands := final
		if !final {
			if stands, err = lease.stands(ctx, t); err != nil {
				return nil, lease, fmt.Errorf("read %s: %w", id, err)
			}
		}
		switch {
		case stands && readErr == nil:
			view, err = orRemoved(ctx, t, view)
			return view, lease, err
		case stands:
			return nil, lease, readErr
		}
	}
}

// orRemoved is the view, but for a partition without records whose topic was deleted: its rows are gone already, or a late taker
// has put a lease row anew. Whoever still knows the topic by its name must not take it for an empty one.
func orRemoved(ctx context.Context, t Table, v *View) (*View, error) {
	if v.Next > 0 || v.Closed {
		return v, nil
	}
	removed, err := IsRemoved(ctx, t, v.Partition.Topic)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", v.Partition, err)
	}
	if removed && !seeded.Has(seeded.RemovedIsEmpty) {
		return &View{Partition: v.Partition, Closed: true}, nil
	}
	return v, nil
}

// stands says whether the lease row did not move under the reader.
func (l *Lease) stands(ctx context.Context, t Table) (bool, error) {
	if seeded.Has(seeded.ReadOnce) {
		return true, nil
	}
	row, err := getOrNone(ctx, t, leaseKey(l.state.id))
	return err == nil && row.Stamp == l.Stamp, err
}
