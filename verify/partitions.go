package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/metadata"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// checkPartitions looks at every partition of every topic, those of removed topics too: their rows
// are garbage.
func (v *verifier) checkPartitions(ctx context.Context) error {
	topics := slices.Collect(maps.Values(v.topics))
	slices.SortFunc(topics, func(a, b *metadata.Topic) int { return cmp.Compare(a.Name, b.Name) })
	for _, t := range topics {
		if err := v.checkTopic(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) checkTopic(parent context.Context, t *metadata.Topic) error {
	work, ctx := errgroup.WithContext(parent)
	work.SetLimit(v.Parallel)
	var left atomic.Int64
	for number := range t.Partitions {
		if ctx.Err() != nil {
			break
		}
		p := v.partition(metadata.PartitionID{Topic: t.ID, Number: number})
		work.Go(func() error {
			if !t.Removed() {
				return v.checkPartition(ctx, p)
			}
			there, err := v.lookRemoved(ctx, p)
			if there {
				left.Add(1)
			}
			return err
		})
	}
	if err := errors.Join(work.Wait(), context.Cause(parent)); err != nil {
		return err
	}
	if n := left.Load(); n > 0 {
		message := fmt.Sprintf("%d partitions of the topic, which was deleted and was called %s, still have their rows", n, t.Name)
		if n == 1 {
			message = fmt.Sprintf("1 partition of the topic, which was deleted and was called %s, still has its rows", t.Name)
		}
		stays := staysForLateWriters
		if v.swept[t.ID] {
			stays = staysForSweep
		}
		v.report(Finding{Kind: OrphanRow, Topic: t.ID.String(), Partition: NoPartition, Row: "partition/" + t.ID.String(),
			Message: message, Stays: stays})
	}
	return nil
}

// lookRemoved says whether a partition of a removed topic still has rows.
func (v *verifier) lookRemoved(ctx context.Context, p *partition) (bool, error) {
	all := metadata.PartitionRows(p.id)
	all.Limit = 1
	rows, err := v.Table.Range(ctx, all)
	if err != nil {
		return false, fmt.Errorf("rows of %s: %w", p.id, err)
	}
	if len(rows) == 0 {
		return false, nil
	}
	if lease, err := metadata.DecodeLease(p.id, rows[0]); err == nil {
		v.need(lease)
	}
	return true, nil
}

func (v *verifier) need(lease *metadata.Lease) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.needed[lease.Source()], v.needed[lease.Journal] = true, true
}

// checkPartition reads a partition until its lease row stands still, or nothing looks wrong.
func (v *verifier) checkPartition(ctx context.Context, p *partition) error {
	for attempt := range attempts {
		settled, err := v.tryPartition(ctx, p)
		if settled || err != nil {
			return err
		}
		if err := pause(ctx, attempt); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: %s/%d", ErrMoving, p.topic, p.id.Number)
}

// tryPartition reads a partition once; false when what it saw may be due to the reading.
func (v *verifier) tryPartition(ctx context.Context, p *partition) (bool, error) {
	head := metadata.PartitionRows(p.id)
	head.Limit = 2
	rows, err := v.Table.Range(ctx, head)
	if err != nil {
		return false, fmt.Errorf("rows of %s: %w", p.id, err)
	}
	if len(rows) == 0 {
		return true, nil // nobody has appended to it
	}
	w := &walk{v: v, p: p}
	if rows[0].Key != p.id.LeaseKey() {
		if removed, err := metadata.IsRemoved(ctx, v.Table, p.id.Topic); err != nil || removed {
			return err == nil, err // it was deleted since the topics were read: these came late, and the gateways remove them
		}
		w.suspect(LeaseMissing, p.id.LeaseKey(), "the partition has rows, and no lease row")
		return w.conclude(ctx, metadata.Stamp{})
	}
	lease, err := metadata.DecodeLease(p.id, rows[0])
	if err != nil {
		w.suspect(RowCorrupt, rows[0].Key, "%v", err)
		return w.conclude(ctx, rows[0].Stamp)
	}
	w.lease, w.state = lease, lease.State()
	if err := w.owner(ctx); err != nil {
		return false, err
	}
	if err := w.index(ctx, len(rows) > 1); err != nil {
		return false, err
	}
	return w.conclude(ctx, lease.Stamp)
}

// walk is one reading of a partition as its lease row has it.
type walk struct {
	v     *verifier
	p     *partition
	lease *metadata.Lease
	state *metadata.Partition

	cursor int64 // offset at which the index goes on
	begun  bool

	entries, records int64 // that readers can reach
	// What looks wrong, or left over, until it is known that the lease row stood.
	suspects []Finding
	leftover []metadata.Row
}

func (w *walk) suspect(kind Kind, row metadata.Key, format string, args ...any) {
	f := w.p.finding(kind, fmt.Sprintf(format, args...))
	f.Row = row.String()
	w.suspects = append(w.suspects, f)
}

// conclude reports what was seen if the lease row is still the one at stamp (zero: there is
// none); else it says false.
func (w *walk) conclude(ctx context.Context, stamp metadata.Stamp) (bool, error) {
	if len(w.suspects) > 0 || len(w.leftover) > 0 {
		row, err := w.v.Table.Get(ctx, w.p.id.LeaseKey(), metadata.Strong)
		if err != nil && !errors.Is(err, metadata.ErrNotFound) {
			return false, fmt.Errorf("lease of %s: %w", w.p.id, err)
		}
		if row.Stamp != stamp {
			return false, nil
		}
	}
	for _, f := range w.suspects {
		w.v.report(f)
	}
	if w.lease != nil {
		w.v.need(w.lease)
		w.v.count(func(s *Summary) {
			s.Partitions, s.Entries, s.Records = s.Partitions+1, s.Entries+w.entries, s.Records+w.records
		})
	}
	if len(w.suspects) > 0 {
		return true, nil // what nothing seems to name may be named by what cannot be read
	}
	return true, w.removeLeftover(ctx)
}

// removeLeftover reports rows that nothing names, and removes them if that is wanted. They are below
// the checkpoint's stamp: whoever puts such a row again puts it with a higher one, which the
// condition spares.
func (w *walk) removeLeftover(ctx context.Context) error {
	for _, row := range w.leftover {
		f := w.p.finding(OrphanRow, fmt.Sprintf("the index does not name it, and the checkpoint at %d is newer", w.lease.Through))
		f.Row = row.Key.String()
		if w.v.Repair {
			err := w.v.Table.Delete(ctx, row.Key, metadata.IfEqual(row.Stamp))
			if err != nil && !errors.Is(err, metadata.ErrConflict) {
				return fmt.Errorf("remove %s: %w", row.Key, err)
			}
			f.Repaired, f.Stays = err == nil, "it was written again meanwhile"
		}
		w.v.report(f)
	}
	return nil
}

// owner checks that the journal is there on which the partition goes on.
func (w *walk) owner(ctx context.Context) error {
	if w.lease.Released {
		return nil
	}
	id := w.lease.Source()
	j, err := w.v.journalOf(ctx, id)
	if err != nil {
		return err
	}
	if j.last < w.lease.Through { // it has grown since, or lost its end
		if j, err = w.v.lookJournal(ctx, id); err != nil {
			return err
		}
	}
	known := true
	if _, seen := w.v.gateways[id]; !seen {
		_, err := w.v.Table.Get(ctx, id.RowKey(), metadata.Strong)
		if err != nil && !errors.Is(err, metadata.ErrNotFound) {
			return fmt.Errorf("gateway %s: %w", id, err)
		}
		known = err == nil
	}
	key := w.p.id.LeaseKey()
	switch {
	case !j.rows:
		w.suspect(LeaseWithoutJournal, key, "gateway %s sequences the partition, and has no journal", id)
	case !known:
		w.suspect(LeaseWithoutJournal, key, "gateway %s sequences the partition, and has no row", id)
	case j.last < w.lease.Through:
		w.suspect(CheckpointAhead, key, "the checkpoint reaches up to number %d of the journal of gateway %s, which ends at %d", w.lease.Through, id, j.last)
	}
	return nil
}
