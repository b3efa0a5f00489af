package metadata_test

import (
	"context"
	"reflect"
	"sort"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
)

// readers look at a partition from without: by the table alone, and by what its owner sends.
type readers struct {
	id metadata.PartitionID
	// truth has what the partition showed after each journal entry, in order; those up
	// to committed are settled.
	truth     []*metadata.View
	committed int
	glanced   *metadata.View
	shared    *metadata.Journals // by which it is read between any two writes
	follower  *metadata.View
}

// shortPages is a table that gives two rows at a time, as others do with long ones.
type shortPages struct{ metadata.Table }

func (s shortPages) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	r.Limit = 2
	return s.Table.Range(ctx, r)
}

func newReaders(id metadata.PartitionID) readers {
	return readers{id: id, truth: []*metadata.View{metadata.NewPartition(id).View()}}
}

// decided notes what readers will see once the entry is in the journal.
func (r *readers) decided(v *metadata.View) { r.truth = append(r.truth, v) }

func (r *readers) settled() { r.committed = len(r.truth) - 1 }

// shown compares what views show, but for their index.
func shown(a, b *metadata.View) string {
	return diff(scalars(a), scalars(b))
}

func scalars(v *metadata.View) metadata.View {
	return metadata.View{Partition: v.Partition, Start: v.Start, Next: v.Next, Bytes: v.Bytes, Fence: v.Fence, Closed: v.Closed}
}

// diff is quick where nothing differs.
func diff(a, b any) string {
	if reflect.DeepEqual(a, b) {
		return ""
	}
	return cmp.Diff(a, b, cmpopts.IgnoreUnexported(metadata.View{}))
}

// hold says that a view is the truth of its stamp, and not older than what was settled
// before it was asked for.
func (r *readers) hold(t tb, v *metadata.View, least int) {
	t.Helper()
	i := sort.Search(len(r.truth), func(i int) bool { return r.truth[i].Stamp.Compare(v.Stamp) > 0 }) - 1
	if i < least {
		t.Fatalf("the table shows number %d at %s, number %d was settled before", i, v.Stamp, least)
	}
	if diff := shown(r.truth[i], v); diff != "" || v.Epoch != v.Stamp.Epoch {
		t.Fatalf("at %s epoch %d (-truth +table):\n%s", v.Stamp, v.Epoch, diff)
	}
}

// glance reads the partition between any two rows that are written.
func (r *readers) glance(rt *rapid.T, table metadata.Table) {
	v, err := metadata.ReadView(rt.Context(), shortPages{table}, r.id)
	if err != nil {
		rt.Fatalf("glance: %v", err)
	}
	r.hold(rt, v, r.committed)
	if !v.Newer(r.glanced) {
		rt.Fatalf("a view at %s after one at %s", v.Stamp, r.glanced.Stamp)
	}
	r.glanced = v
	if r.shared == nil {
		r.shared = metadata.NewJournals(shortPages{table}).OneAtATime()
	}
	if v, _, err = r.shared.View(rt.Context(), r.id); err != nil {
		rt.Fatalf("glance, shared: %v", err)
	}
	r.hold(rt, v, r.committed)
	if !v.Newer(r.glanced) {
		rt.Fatalf("a shared view at %s after one at %s", v.Stamp, r.glanced.Stamp)
	}
}

// check holds readers of both kinds against the owner's view and its whole index.
func (r *readers) check(rt *rapid.T, table metadata.Table, owner *metadata.View, entries []metadata.Entry, did map[string]int) {
	index := metadata.TableIndex{Table: table}
	v, err := metadata.ReadView(rt.Context(), table, r.id)
	if err != nil {
		rt.Fatalf("read: %v", err)
	}
	found, err := v.AllEntries(rt.Context(), index)
	if diff := shown(owner, v) + diff(entries, found); err != nil || diff != "" {
		rt.Fatalf("%v (-owner +table):\n%s", err, diff)
	}
	if v.Stamp != owner.Stamp {
		rt.Fatalf("the table shows %s, its owner %s", v.Stamp, owner.Stamp)
	}
	r.send(rt, owner, did)
	if diff := shown(owner, r.follower); diff != "" || r.follower.Stamp != owner.Stamp {
		rt.Fatalf("%s, follower %s (-owner +follower):\n%s", owner.Stamp, r.follower.Stamp, diff)
	}
	for len(entries) > 0 && entries[0].End <= owner.Start {
		entries = entries[1:]
	}
	for at := owner.Start; at < owner.Next; {
		part, err := r.follower.Entries(rt.Context(), index, at)
		if err != nil || len(part) == 0 {
			rt.Fatalf("the follower finds %v %v at %d", part, err, at)
		}
		if diff := diff(entries[:min(len(part), len(entries))], part); diff != "" {
			rt.Fatalf("from %d on (-owner +follower):\n%s", at, diff)
		}
		entries, at = entries[len(part):], part[len(part)-1].End
	}
	if len(entries) > 0 {
		rt.Fatalf("the follower does not find %+v", entries)
	}
}

// send brings the follower up to date as gateways do.
func (r *readers) send(rt *rapid.T, owner *metadata.View, did map[string]int) {
	var err error
	if delta, ok := owner.Since(r.follower); ok {
		did["followed"]++
		r.follower, err = r.follower.Follow(delta)
	} else {
		did["sent whole"]++
		r.follower, err = metadata.DecodeView(r.id, owner.Encode())
	}
	if err != nil {
		rt.Fatalf("send: %v", err)
	}
}
