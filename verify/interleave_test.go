package verify_test

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/verify"
)

// moving does a step of a gateway's work before some of the reads of table and bucket.
type moving struct {
	segments.Store
	metadata.Table
	step func()
}

func (m moving) String() string { return "moving" }

func (m moving) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	m.step()
	return m.Table.Range(ctx, r)
}

// table and store tell the two Gets apart.
type movingTable struct{ moving }

func (m movingTable) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	m.step()
	return m.Table.Get(ctx, key, c)
}

func (m movingTable) Delete(ctx context.Context, key metadata.Key, c metadata.Condition) error {
	m.step()
	return m.Table.Delete(ctx, key, c)
}

func (m movingTable) Put(ctx context.Context, row metadata.Row, c metadata.Condition) error {
	panic("verify puts a row")
}

type movingStore struct{ moving }

func (m movingStore) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	m.step()
	return m.Store.Get(ctx, key, offset, length)
}

func (m movingStore) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	m.step()
	return m.Store.List(ctx, prefix, after, limit)
}

func (m movingStore) Delete(ctx context.Context, key string) error {
	m.step()
	return m.Store.Delete(ctx, key)
}

func (m movingStore) Put(context.Context, string, segments.Body) error {
	panic("verify puts an object")
}

// trimJournal lets go of what every partition has checkpointed.
func (f *forge) trimJournal() {
	f.t.Helper()
	through := f.journal.Next() - 2
	for _, p := range f.parts {
		if since := p.state.Unfolded(); since != 0 {
			through = min(through, since-1)
		}
	}
	if f.journal.Next() >= 3 {
		f.must(metadata.TrimJournal(f.t.Context(), f.table, f.gateway, through))
	}
}

// collect removes the objects of which no partition can read anything.
func (f *forge) collect() {
	f.t.Helper()
	list, err := f.store.List(f.t.Context(), f.cluster.ID+"/", "", 10_000)
	f.must(err)
	for _, o := range list {
		d, err := segments.ReadDirectory(f.t.Context(), f.store, o.Key)
		if err != nil {
			continue // a generation
		}
		read := false
		for _, s := range d.Spans {
			view, err := metadata.ReadView(f.t.Context(), f.table, f.id(s.Partition))
			f.must(err)
			for offset := view.Start; offset < view.Next; {
				entries, err := view.Entries(f.t.Context(), metadata.TableIndex{Table: f.table}, offset)
				f.must(err)
				for _, e := range entries {
					read = read || e.Number == d.Number && string(e.Gateway) == string(d.Gateway)
				}
				offset = entries[len(entries)-1].End
			}
		}
		if !read {
			f.must(f.store.Delete(f.t.Context(), o.Key))
		}
	}
}

// TestBetweenReads moves a cluster between any two reads: commits, checkpoints into pages, trims of logs and
// journals, takeovers, releases, garbage collection. None of it is a break, and repair removes nothing
// that is needed.
func TestBetweenReads(t *testing.T) {
	for range 4 { // it needs no gateways: see TestMain
		rapid.Check(t, func(r *rapid.T) { betweenReads(t, r) })
	}
}

func betweenReads(t *testing.T, r *rapid.T) {
	f := newForge(t)
	steps := []func(){
		func() { f.append(1, 0, 1) },
		func() { f.append(2, 2) },
		func() {
			for range 70 {
				f.append(1, 0)
			}
			f.checkpoint(0, false)
		},
		func() { f.checkpoint(1, false) },
		func() { f.checkpoint(2, true); delete(f.parts, 2) },
		func() {
			p := f.held(0).state
			f.trim(0, p.Start()+(p.Next()-p.Start())*3/4)
			f.checkpoint(0, false)
		},
		func() { f.trim(1, f.held(1).state.Next()) },
		f.trimJournal,
		f.collect,
		f.begin,
		func() { f.leave(); f.begin() },
	}
	step := func() { steps[rapid.IntRange(0, len(steps)-1).Draw(r, "step")]() }
	for range rapid.IntRange(0, 20).Draw(r, "before") {
		step()
	}
	left := 40
	both := moving{f.store, f.table, func() {
		if left > 0 && rapid.IntRange(0, 3).Draw(r, "moves") == 0 {
			left--
			step()
		}
	}}
	config := verify.Config{Store: movingStore{both}, Table: movingTable{both}, Parallel: 1, Grace: time.Nanosecond,
		Deep: rapid.Bool().Draw(r, "deep"), Repair: rapid.Bool().Draw(r, "repair")}
	if summary, err := check(t.Context(), config); err != nil {
		r.Fatalf("beside a gateway: %v\n%+v", err, summary)
	}
	config.Store, config.Table, config.Deep = f.store, f.table, true
	if summary, err := check(t.Context(), config); err != nil {
		r.Fatalf("afterwards: %v\n%+v", err, summary)
	}
}
