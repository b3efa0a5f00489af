package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// groupSize is how many entries are gathered before their objects are read: an object's entries of
// many partitions then cost one read.
const groupSize = 50_000

// reference is an entry of a partition that names an object.
type reference struct {
	p *partition
	e metadata.Entry
	// again: its offsets were counted with other entries, which a swap replaced by it.
	again bool
}

// same says that two references are to the same bytes as the same offsets: a swap has what it leaves alone, too.
func (r *reference) same(o *reference) bool {
	return r.p.id == o.p.id && r.e.First == o.e.First && r.e.End == o.e.End && r.e.Gateway == o.e.Gateway && r.e.Number == o.e.Number && r.e.Position == o.e.Position
}

// group gathers references. Who fills it up has their objects read, while the others wait.
type group struct {
	mu   sync.Mutex
	list []reference
}

// readable is those of the entries, in offset order, that readers can reach: what lies below the log
// start may go.
func readable(entries []metadata.Entry, start int64) []metadata.Entry {
	for len(entries) > 0 && entries[0].End <= start {
		entries = entries[1:]
	}
	return entries
}

func recordsOf(entries []metadata.Entry) int64 {
	var n int64
	for i := range entries {
		n += entries[i].Records
	}
	return n
}

// hold has entries held against their objects, now or later. again: their offsets were counted already.
func (v *verifier) hold(ctx context.Context, p *partition, entries []metadata.Entry, again bool) error {
	v.group.mu.Lock()
	defer v.group.mu.Unlock()
	for _, e := range entries {
		if e.Length > 0 { // key compaction leaves entries that name nothing
			v.group.list = append(v.group.list, reference{p, e, again})
		}
	}
	if len(v.group.list) < groupSize {
		return nil
	}
	return v.flushLocked(ctx)
}

// order puts what is counted first.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// flush looks at what was gathered.
func (v *verifier) flush(ctx context.Context) error {
	v.group.mu.Lock()
	defer v.group.mu.Unlock()
	return v.flushLocked(ctx)
}

func (v *verifier) flushLocked(ctx context.Context) error {
	list := v.group.list
	slices.SortFunc(list, func(a, b reference) int {
		return cmp.Or(cmp.Compare(a.e.Gateway, b.e.Gateway), cmp.Compare(a.e.Number, b.e.Number), cmp.Compare(a.e.Position, b.e.Position),
			cmp.Compare(a.p.id.Number, b.p.id.Number), order(a.again, b.again))
	})
	list = slices.CompactFunc(list, func(a, b reference) bool { return a.same(&b) && (a.again || b.again) })
	work, working := errgroup.WithContext(ctx)
	work.SetLimit(v.Parallel)
	var mu sync.Mutex
	var suspects []suspect
	for len(list) > 0 && working.Err() == nil {
		n := 1
		for n < len(list) && list[n].e.Gateway == list[0].e.Gateway && list[n].e.Number == list[0].e.Number {
			n++
		}
		references := list[:n]
		list = list[n:]
		work.Go(func() error {
			found, err := v.checkObject(working, references)
			mu.Lock()
			suspects = append(suspects, found...)
			mu.Unlock()
			return err
		})
	}
	if err := errors.Join(work.Wait(), context.Cause(ctx)); err != nil {
		return err
	}
	v.group.list = v.group.list[:0]
	return v.confirm(ctx, suspects)
}

// suspect is a reference whose object is not as it should be.
type suspect struct {
	reference
	kind    Kind
	object  string
	message string
}

// checkObject holds the entries that name one object against it.
func (v *verifier) checkObject(ctx context.Context, list []reference) ([]suspect, error) {
	key := v.objectKey(list[0].e.Gateway, list[0].e.Number)
	directory, err := segments.ReadDirectory(ctx, v.Store, key)
	if errors.Is(err, segments.ErrCorrupt) { // once more: the bytes may have suffered on their way
		directory, err = segments.ReadDirectory(ctx, v.Store, key)
	}
	var suspects []suspect
	switch {
	case errors.Is(err, segments.ErrNotFound):
		for _, r := range list {
			suspects = append(suspects, suspect{r, ObjectMissing, key, "the object is not there"})
		}
		return suspects, nil
	case errors.Is(err, segments.ErrCorrupt):
		for _, r := range list {
			suspects = append(suspects, suspect{r, ObjectCorrupt, key, err.Error()})
		}
		return suspects, nil
	case err != nil:
		return nil, err
	}
	bytes := &window{store: v.Store, key: key}
	for i, r := range list {
		bytes.end = bytes.wanted(list[i:])
		kind, message, err := v.checkReference(ctx, directory, r, bytes)
		if err != nil {
			return nil, err
		}
		if message != "" {
			suspects = append(suspects, suspect{r, kind, key, message})
		}
	}
	return suspects, nil
}

func (v *verifier) objectKey(gateway metadata.GatewayID, number uint64) string {
	return segments.ObjectKey(segments.ClusterID(v.cluster.ID), segments.GatewayID(gateway), number)
}

// checkReference compares an entry with the directory, and with Deep the bytes with both. An empty
// message: all is well.
func (v *verifier) checkReference(ctx context.Context, d *segments.Directory, r reference, bytes *window) (Kind, string, error) {
	batches, message := batchesOf(d, r)
	if message != "" {
		return DirectoryMismatch, message, nil
	}
	if !r.again {
		v.count(func(s *Summary) { s.Batches += int64(len(batches)) })
	}
	if message := compareEntry(&r.e, batches); message != "" {
		return DirectoryMismatch, message, nil
	}
	if sum := contentSum(&r.e, batches); sum != r.e.Sum && counted(&r.e, batches) {
		return ContentSum, fmt.Sprintf("the batches add up to %016x, the index entry says %016x", sum, r.e.Sum), nil
	}
	if !v.Deep {
		return "", "", nil
	}
	return checkBytes(ctx, bytes, &r.e, batches)
}

// confirm reports suspects that are still named by their partitions: an object may go once they
// are not. The partitions are read after the objects.
func (v *verifier) confirm(ctx context.Context, suspects []suspect) error {
	slices.SortFunc(suspects, func(a, b suspect) int {
		return cmp.Or(cmp.Compare(a.p.topic, b.p.topic), cmp.Compare(a.p.id.Number, b.p.id.Number), cmp.Compare(a.e.First, b.e.First))
	})
	for len(suspects) > 0 {
		n := 1
		for n < len(suspects) && suspects[n].p.id == suspects[0].p.id {
			n++
		}
		still, err := v.stillNamed(ctx, suspects[:n])
		if err != nil {
			return err
		}
		for _, s := range still {
			if v.tellsAgain(&s) {
				continue
			}
			f := s.p.finding(s.kind, fmt.Sprintf("offsets %d to %d: %s", s.e.First, s.e.End-1, s.message))
			f.Object = s.object
			v.report(f)
		}
		suspects = suspects[n:]
	}
	return nil
}

// tellsAgain says whether a suspect was reported already. Corrupt objects: once is enough, however many partitions are in them. The caller
// holds the group.
func (v *verifier) tellsAgain(s *suspect) bool {
	key := told{kind: s.kind, object: s.object}
	if s.kind != ObjectCorrupt {
		key.partition, key.offset = s.p.id, s.e.First
	}
	again := v.told[key]
	v.told[key] = true
	return again
}

// told is what was reported of an object.
type told struct {
	kind      Kind
	object    string
	partition metadata.PartitionID
	offset    int64
}

// stillNamed reads a partition anew and returns those of its suspects that its index still has.
func (v *verifier) stillNamed(ctx context.Context, list []suspect) ([]suspect, error) {
	p := list[0].p
	for attempt := range attempts {
		view, err := v.readView(ctx, p.id)
		if err != nil {
			return nil, err
		}
		still, err := stillIn(ctx, v.Table, view, list)
		if !errors.Is(err, metadata.ErrIndexMoved) {
			return still, err
		}
		if err := pause(ctx, attempt); err != nil {
			return nil, err
		}
	}
	return nil, nil // the page that named them is gone: that is reported with the partition
}

// readView reads what readers see of a partition: if its journal is broken, as of the checkpoint.
func (v *verifier) readView(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	view, err := metadata.ReadView(ctx, v.Table, id)
	if !errors.Is(err, metadata.ErrHole) && !errors.Is(err, metadata.ErrCorrupt) {
		return view, err
	}
	lease, err := metadata.ReadLease(ctx, v.Table, id, metadata.Strong)
	switch {
	case errors.Is(err, metadata.ErrNotFound), errors.Is(err, metadata.ErrCorrupt):
		return metadata.NewPartition(id).View(), nil // reported with the partition
	case err != nil:
		return nil, err
	}
	return lease.View(), nil
}

// stillIn returns those of the suspects that a view's index has.
func stillIn(ctx context.Context, table metadata.Table, view *metadata.View, list []suspect) ([]suspect, error) {
	var still []suspect
	index := metadata.TableIndex{Table: table}
	for _, s := range list {
		if s.e.End <= view.Start || s.e.First >= view.Next {
			continue
		}
		entries, err := view.Entries(ctx, index, s.e.First)
		if errors.Is(err, metadata.ErrCorrupt) || err == nil && len(entries) == 0 {
			continue // reported with the partition
		}
		if err != nil {
			return nil, err
		}
		if e := &entries[0]; e.First == s.e.First && e.Gateway == s.e.Gateway && e.Number == s.e.Number && e.Position == s.e.Position {
			still = append(still, s)
		}
	}
	return still, nil
}
