package compactor_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/storetest"
)

// wantKept wants a collection that deletes so many objects and keeps others for these reasons.
func wantKept(t *testing.T, got *compactor.Collection, deleted int64, kept map[compactor.Reason]int64) {
	t.Helper()
	if got.Deleted != deleted {
		t.Errorf("%d objects deleted, want %d", got.Deleted, deleted)
	}
	if diff := cmp.Diff(kept, got.Kept); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
}

func (w *forgery) wantObjects(keys ...string) {
	w.t.Helper()
	slices.Sort(keys)
	if diff := cmp.Diff(keys, w.objects()); diff != "" {
		w.t.Fatalf("objects (-want +got):\n%s", diff)
	}
}

// An upload that is not committed yet stays, also when its gateway died and its disk may come back with what was acked as
// buffered; it goes when its number is settled, or its id closed.
func TestUnsettledStays(t *testing.T) {
	w := newForgery(t)
	a, b := w.begin(), w.begin()
	c := w.collector(nil)
	a.upload(1, 0)
	a.settle(false) // committed, and the row does not say so yet
	a.upload(1, 0)
	b.upload(1, 1)
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 0, map[compactor.Reason]int64{compactor.KeptUnsettled: 2})

	b.dead = true // and sealed, but not closed
	_, err := metadata.Seal(t.Context(), w.table, b.id, a.id)
	w.must(err)
	w.must(metadata.MarkSealed(t.Context(), w.table, b.id, time.Now()))
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 0, map[compactor.Reason]int64{compactor.KeptUnsettled: 2})
	b.settle(false) // its disk came back
	b.end(a.id)
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 0, map[compactor.Reason]int64{compactor.KeptUnsettled: 1})

	// It is given up: settled, and named by nothing.
	a.flying = nil
	a.beat()
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 1, nil)
	w.wantObjects(w.key(a.id, 1), w.key(b.id, 1))
}

// What only a journal names stays, on whatever view the look is based.
func TestStaleView(t *testing.T) {
	w := newForgery(t)
	a := w.begin()
	a.upload(1, 0)
	a.settle(true)
	a.checkpoint(0, false)
	a.upload(1, 0)
	a.settle(true)
	wantKept(t, w.collect(w.collector(nil), compactor.CollectOptions{}), 0, nil)
	w.wantObjects(w.key(a.id, 1), w.key(a.id, 2))
}

// A closed uploader's late reference: before its objects go, every gateway knows of the closing, and refuses it then.
func TestClosedUploadersLateReference(t *testing.T) {
	w := newForgery(t)
	a, b := w.begin(), w.begin()
	a.look() // at b, while it lives
	if a.hold(0) == nil {
		t.Fatal("not taken")
	}
	d := b.upload(1, 0)
	b.flying = nil // on its way, with nobody who waits for it
	b.end(a.id)
	wantKept(t, w.collect(w.collector(nil), compactor.CollectOptions{}), 1, nil)
	if !a.judge(d, &d.Spans[0]) || len(w.named()) > 0 {
		t.Errorf("a late reference was taken")
	}
}

// A gateway that cannot be asked holds up what was closed since it was asked last, and nothing else, until it is sealed.
func TestUnaskedGateway(t *testing.T) {
	w := newForgery(t)
	a, b, first := w.begin(), w.begin(), w.begin()
	first.upload(1, 0)
	first.end(a.id)
	silent := make(map[metadata.GatewayID]bool)
	c := w.collector(func(config *compactor.CollectConfig) { config.Gateways = asked{w, silent} })
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 1, nil)

	silent[b.id] = true
	again := w.build(first.id, 1, 1, 0) // its upload lands late
	w.must(w.store.Put(t.Context(), again.Key(), again))
	second := w.begin()
	second.upload(1, 0)
	second.end(a.id)
	got := w.collect(c, compactor.CollectOptions{})
	wantKept(t, got, 1, map[compactor.Reason]int64{compactor.KeptUnheard: 1})
	if !slices.Equal(got.Unasked, []metadata.GatewayID{b.id}) {
		t.Errorf("unasked: %v", got.Unasked)
	}
	b.dead = true
	_, err := metadata.Seal(t.Context(), w.table, b.id, a.id)
	w.must(err)
	w.must(metadata.MarkSealed(t.Context(), w.table, b.id, time.Now()))
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 1, nil)
}

// asked is a forgery in which some gateways do not answer.
type asked struct {
	*forgery
	silent map[metadata.GatewayID]bool
}

func (a asked) Acknowledge(ctx context.Context, id metadata.GatewayID) error {
	if a.silent[id] {
		return errors.New("no answer")
	}
	return a.forgery.Acknowledge(ctx, id)
}

// pages gives partition 0 an index with pages.
func (g *forged) pages() {
	for range 70 {
		g.upload(1, 0)
		g.settle(false)
	}
	g.checkpoint(0, false)
	g.beat()
}

// A merge in flight keeps its segment and its rows. Once it is decided, what it replaced goes; when its compactor is closed
// before, its own do, and the swap comes too late.
func TestMergeInFlight(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprint("late ", late), func(t *testing.T) {
			w := newForgery(t)
			a, b := w.begin(), w.begin()
			a.pages()
			a.upload(1, 0)
			a.settle(false)
			a.checkpoint(0, false) // newer than the page
			c := w.collector(nil)
			m := b.merge(0, func(int) int { return 0 })
			a.beat()
			b.beat()
			wantKept(t, w.collect(c, compactor.CollectOptions{}), 0, map[compactor.Reason]int64{compactor.KeptUnsettled: 1})
			if late {
				b.end(a.id)
				got := w.collect(c, compactor.CollectOptions{})
				wantKept(t, got, 1, nil)
				if got.Rows != 1 {
					t.Errorf("%d rows were removed, want the page of the merge", got.Rows)
				}
				m.decide()
				if w.did["late swap refused"] != 1 {
					t.Errorf("%v", w.did)
				}
				return
			}
			m.decide()
			b.beat()
			got := w.collect(c, compactor.CollectOptions{})
			wantKept(t, got, 70, nil)
			if got.Rows != 0 {
				t.Errorf("%d rows were removed: the lease row names the page still", got.Rows)
			}
			w.wantObjects(w.key(metadata.MergerID(b.id), 1), w.key(a.id, 71))
			a.checkpoint(0, false)
			if got := w.collect(c, compactor.CollectOptions{}); got.Rows != 1 {
				t.Errorf("%d rows were removed, want the page that was replaced", got.Rows)
			}
			if entries := w.entries(0); len(entries) != 2 {
				t.Errorf("%d entries", len(entries))
			}
		})
	}
}

// Rows that a checkpoint left when it was cut short go; those of one that is being written stay.
func TestLeftoverRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newForgery(t)
		a := w.begin()
		a.pages()
		row, err := w.table.Get(t.Context(), w.id(0).PageKey(metadata.RowPlace{}), metadata.Strong)
		w.must(err)
		for first, sequence := range map[int64]uint64{3: 5, 140: 999} {
			row.Key, row.Nonce = w.id(0).PageKey(metadata.RowPlace{First: first}), metadata.NewNonce()
			row.Stamp = metadata.Stamp{Epoch: 1, Sequence: sequence}
			w.must(w.table.Put(t.Context(), row, metadata.Condition{}))
		}
		c := w.collector(func(config *compactor.CollectConfig) { config.Grace = time.Minute })
		if got := w.collect(c, compactor.CollectOptions{}); got.Rows != 0 || got.RowsWaiting != 1 {
			t.Errorf("at first: %+v", got)
		}
		time.Sleep(time.Minute)
		if got := w.collect(c, compactor.CollectOptions{}); got.Rows != 1 || got.RowsWaiting != 0 {
			t.Errorf("after the grace: %+v", got)
		}
		if got := w.collect(c, compactor.CollectOptions{}); got.Rows+got.RowsWaiting != 0 || len(w.entries(0)) != 70 {
			t.Errorf("and then: %+v", got)
		}
	})
}

// A gateway that is closed leaves nothing but the ends of its journal, once nothing of it is named. An upload of its that
// lands after that is known for garbage by the seal.
func TestDepartedGateway(t *testing.T) {
	w := newForgery(t)
	a, b := w.begin(), w.begin()
	b.upload(1, 0)
	b.settle(true)
	b.leave()
	c := w.collector(nil)
	if got := w.collect(c, compactor.CollectOptions{}); got.Gateways != 0 || got.Deleted != 0 {
		t.Errorf("while its object is named: %+v", got)
	}
	a.hold(0)
	a.trim(0, 1)
	if got := w.collect(c, compactor.CollectOptions{}); got.Deleted != 1 || got.Gateways != 1 {
		t.Errorf("when its object is not named: %+v", got)
	}
	journal, err := metadata.ReadJournal(t.Context(), w.table, b.id)
	if err != nil || journal.Seal == 0 || len(journal.Rows) != 0 {
		t.Errorf("its journal: %+v %v", journal, err)
	}
	for _, id := range []metadata.GatewayID{b.id, "g00000000000nobody"} {
		object := w.build(id, 7, 1, 0)
		w.must(w.store.Put(t.Context(), object.Key(), object))
	}
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 1, map[compactor.Reason]int64{compactor.KeptUnknown: 1})
	w.wantObjects(w.key("g00000000000nobody", 7))
}

// The journal of a closed gateway stays while a partition rests on it.
func TestJournalThatIsNeeded(t *testing.T) {
	w := newForgery(t)
	a, b := w.begin(), w.begin()
	b.hold(0)
	b.upload(1, 0)
	b.settle(true)
	b.end(a.id) // nobody has taken the partition
	c := w.collector(nil)
	if got := w.collect(c, compactor.CollectOptions{}); got.Rows+got.Gateways+got.Deleted != 0 {
		t.Errorf("%+v", got)
	}
	a.hold(0)
	if got := w.collect(c, compactor.CollectOptions{}); got.Rows != 1 || got.Gateways != 0 {
		t.Errorf("when it was taken: %+v", got)
	}
}

// A deleted topic's segments go when it is removed and its partitions are closed; not those of a topic that the
// catalog merely lost.
func TestRemovedTopic(t *testing.T) {
	for _, closed := range []bool{true, false} {
		w := newForgery(t)
		a := w.begin()
		a.upload(1, 0)
		a.settle(true)
		if closed {
			a.commit(a.parts[0], a.parts[0].state.JudgeClose())
		}
		topic, err := w.topics.MarkDeleting(t.Context(), "a")
		w.must(err)
		c := w.collector(nil)
		wantKept(t, w.collect(c, compactor.CollectOptions{}), 0, nil)
		w.must(w.topics.Remove(t.Context(), topic))
		if closed {
			wantKept(t, w.collect(c, compactor.CollectOptions{}), 1, nil)
		} else if got := w.collect(c, compactor.CollectOptions{}); got.Deleted != 0 {
			t.Errorf("%+v", got)
		}
	}
}

// Until the grace is over nothing goes; a collector that begins anew begins to wait anew.
func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newForgery(t)
		a := w.begin()
		a.upload(1, 0)
		a.flying = nil
		a.beat()
		graceful := func(config *compactor.CollectConfig) { config.Grace = 10 * time.Minute }
		c := w.collector(graceful)
		wantKept(t, w.collect(c, compactor.CollectOptions{}), 0, map[compactor.Reason]int64{compactor.KeptForGrace: 1})
		wantKept(t, w.collect(c, compactor.CollectOptions{DryRun: true}), 1, nil)
		w.wantObjects(w.key(a.id, 1))
		time.Sleep(9 * time.Minute)
		wantKept(t, w.collect(w.collector(graceful), compactor.CollectOptions{}), 0, map[compactor.Reason]int64{compactor.KeptForGrace: 1})
		wantKept(t, w.collect(c, compactor.CollectOptions{}), 0, map[compactor.Reason]int64{compactor.KeptForGrace: 1})
		began := time.Now()
		wantKept(t, w.collect(c, compactor.CollectOptions{Wait: true}), 1, nil)
		if took := time.Since(began); took != 10*time.Minute {
			t.Errorf("it waited for %s", took)
		}
		w.wantObjects()
	})
}

// More than a share of the bytes goes only by force, unless the partitions can account for it.
func TestShare(t *testing.T) {
	w := newForgery(t)
	a := w.begin()
	const many = 120
	for range many {
		a.upload(1, 0)
	}
	a.flying = nil
	a.upload(1, 1)
	a.settle(true)
	big := func(config *compactor.CollectConfig) { config.Store = bigStore{w.store} }
	c := w.collector(big)
	wantKept(t, w.collect(c, compactor.CollectOptions{DryRun: true}), 0, map[compactor.Reason]int64{compactor.KeptTooMany: many})
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 0, map[compactor.Reason]int64{compactor.KeptTooMany: many})
	wantKept(t, w.collect(w.collector(nil), compactor.CollectOptions{DryRun: true}), many, nil) // less than 1 GiB
	wantKept(t, w.collect(c, compactor.CollectOptions{Force: true}), many, nil)
	w.wantObjects(w.key(a.id, many+1))

	b := w.begin()
	for range many {
		b.upload(1, 0)
		b.settle(false)
	}
	b.beat()
	a.trim(0, many)
	wantKept(t, w.collect(c, compactor.CollectOptions{}), many, nil)
}

// What somebody deleted is not too much at once, also when the rows of its partitions are gone already; what lies in partitions
// without rows of which nobody knows anything is.
func TestShareOfARemovedTopic(t *testing.T) {
	for _, removed := range []bool{true, false} {
		w := newForgery(t)
		a := w.begin()
		const many = 120
		for range many {
			a.upload(1, 0)
			a.settle(false)
		}
		a.beat()
		topic, err := w.topics.MarkDeleting(t.Context(), "a")
		w.must(err)
		if removed {
			w.must(metadata.NoteRemoved(t.Context(), w.table, topic))
		}
		w.must(w.topics.Remove(t.Context(), topic))
		r := &metadata.RemovedTopic{ID: topic.ID, Partitions: topic.Partitions}
		if left, err := r.SweepPartition(t.Context(), w.table, 0, true); left || err != nil {
			t.Fatal(left, err)
		}
		c := w.collector(func(config *compactor.CollectConfig) { config.Store = bigStore{w.store} })
		want, kept := int64(many), map[compactor.Reason]int64(nil)
		if !removed {
			want, kept = 0, map[compactor.Reason]int64{compactor.KeptTooMany: many}
		}
		wantKept(t, w.collect(c, compactor.CollectOptions{}), want, kept)
	}
}

// bigStore says that objects are large.
type bigStore struct{ segments.Store }

func (s bigStore) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	list, err := s.Store.List(ctx, prefix, after, limit)
	for i := range list {
		list[i].Size <<= 20
	}
	return list, err
}

// TestCollectFull: a bucket that is full has no room for another generation either. What goes makes room.
func TestCollectFull(t *testing.T) {
	w := newForgery(t)
	a := w.begin()
	for range 3 {
		a.upload(1, 0)
	}
	a.flying = nil
	a.beat()
	generations := func() (keys []string) {
		list, err := w.store.List(t.Context(), w.cluster.ID+"/generation/", "", 10)
		w.must(err)
		for _, o := range list {
			keys = append(keys, o.Key)
		}
		return keys
	}
	before := generations()
	store := storetest.NewFaulty(w.store)
	full := true
	store.Decide(func(call storetest.Call) storetest.Fault {
		switch {
		case call.Op == storetest.Delete && strings.HasSuffix(call.Key, segments.Suffix):
			full = false
		case call.Op == storetest.Put && full:
			return storetest.Fault{Before: segments.ErrFull}
		}
		return storetest.Fault{}
	})
	c := w.collector(func(config *compactor.CollectConfig) { config.Store, config.Parallel = store, 1 })
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 3, nil)
	if after := generations(); len(after) != 1 || slices.Equal(after, before) {
		t.Errorf("generations %v, before that %v: they should rise, and the newest alone stay", after, before)
	}
}

// A bucket that refuses deletes is told about, and holds up nothing else.
func TestDeletesRefused(t *testing.T) {
	w := newForgery(t)
	a, b := w.begin(), w.begin()
	const many = 40
	for range many {
		a.upload(1, 0)
	}
	a.flying = nil
	a.beat()
	b.leave()
	store := storetest.NewFaulty(w.store)
	deny := make(map[string]bool)
	store.Decide(func(call storetest.Call) storetest.Fault {
		if call.Op == storetest.Delete && deny[call.Key] {
			return storetest.Fault{Before: segments.ErrDenied}
		}
		return storetest.Fault{}
	})
	deny[w.key(a.id, 3)] = true
	c := w.collector(func(config *compactor.CollectConfig) { config.Store, config.Parallel = store, 1 })
	got := w.collect(c, compactor.CollectOptions{})
	wantKept(t, got, many-1, map[compactor.Reason]int64{compactor.KeptRefused: 1})
	if got.Refusal == "" || got.Gateways != 1 {
		t.Errorf("%+v", got)
	}
	delete(deny, w.key(a.id, 3))
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 1, nil)

	for range many {
		deny[a.upload(1, 0).Key()] = true
	}
	a.flying = nil
	a.beat()
	before := store.Calls(storetest.Delete)
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 0, map[compactor.Reason]int64{compactor.KeptRefused: many})
	if tried := store.Calls(storetest.Delete) - before; tried > many/2+1 {
		t.Errorf("%d deletes were tried", tried)
	}
}

// The last look spares what a partition names, wherever in its index and however the candidate came about; also when a
// partition in it cannot be read, and when its own directory cannot.
func TestLastLook(t *testing.T) {
	w := newForgery(t)
	a := w.begin()
	a.pages() // in a page, at the offsets from 0 on
	a.upload(1, 0, 1)
	a.settle(false) // in the journal
	a.upload(1, 2)
	a.settle(false)
	a.checkpoint(2, false) // in the lease row
	a.upload(1, 0)
	a.flying = nil
	a.beat()
	c := w.collector(nil)
	there := w.objects()
	for number := uint64(1); number <= a.number; number++ {
		c.Suspect(a.id, number)
	}
	w.must(c.Reap(t.Context()))
	w.wantObjects(slices.DeleteFunc(there, func(key string) bool { return key == w.key(a.id, a.number) })...)

	// A partition that cannot be read keeps what is in it.
	object := w.build(a.id, 500, 1, 1, 2)
	w.must(w.store.Put(t.Context(), object.Key(), object))
	lease, err := w.table.Get(t.Context(), w.id(2).LeaseKey(), metadata.Strong)
	w.must(err)
	broken := lease
	broken.Nonce, broken.Value = metadata.NewNonce(), []byte{1}
	w.must(w.table.Put(t.Context(), broken, metadata.Condition{}))
	a.number = 500
	a.beat()
	c.Suspect(a.id, 500)
	w.must(c.Reap(t.Context()))
	if !w.has(object.Key()) {
		t.Error("an object is gone that a partition may name which cannot be read")
	}
	lease.Nonce = metadata.NewNonce()
	w.must(w.table.Put(t.Context(), lease, metadata.Condition{}))

	w.must(w.store.Put(t.Context(), w.key(a.id, 499), segments.NewBody([]byte("no segment"))))
	wantKept(t, w.collect(c, compactor.CollectOptions{}), 1, map[compactor.Reason]int64{compactor.KeptUnreadable: 1})
}

// An older copy of the table is not collected by.
func TestRolledBack(t *testing.T) {
	w := newForgery(t)
	w.begin()
	w.must(w.store.Put(t.Context(), fmt.Sprintf("%s/generation/%020d", w.cluster.ID, 7), segments.NewBody([]byte("x"))))
	if _, err := w.collector(nil).Collect(t.Context(), compactor.CollectOptions{}); !errors.Is(err, compactor.ErrRolledBack) {
		t.Errorf("%v", err)
	}
}

// messy is a forgery with garbage of each kind.
func messy(t *testing.T) *forgery {
	w := newForgery(t)
	a, b := w.begin(), w.begin()
	a.pages()
	m := b.merge(0, func(int) int { return 0 })
	m.decide()
	a.checkpoint(0, false)
	b.upload(1, 1)
	b.flying = nil
	b.leave()
	a.upload(1, 2)
	a.settle(true)
	a.trim(2, 1)
	a.beat()
	return w
}

// A collector that is killed at any call, before or after its effect, leaves nothing that the next one cannot finish, and two
// at once do each other no harm.
func TestCollectorKilled(t *testing.T) {
	whole := messy(t)
	calls := 0
	counting := func(w *forgery, each func() error) func(*compactor.CollectConfig) {
		return func(config *compactor.CollectConfig) {
			config.Parallel = 1
			config.Store, config.Table = mortalStore{w.store, each}, mortalTable{w.table, each}
		}
	}
	whole.collect(whole.collector(counting(whole, func() error { calls++; return nil })), compactor.CollectOptions{Force: true})
	whole.collect(whole.collector(nil), compactor.CollectOptions{Force: true})
	if calls < 50 || len(whole.named()) == 0 {
		t.Fatalf("%d calls, %d named", calls, len(whole.named()))
	}
	for at := 0; at < calls; at += 1 + at%3 {
		w := messy(t)
		left := at
		_, err := w.collector(counting(w, func() error {
			if left--; left < 0 {
				return errCollectorKilled
			}
			return nil
		})).Collect(t.Context(), compactor.CollectOptions{Force: true})
		if err == nil {
			continue // it was the delete of an object, which is told otherwise
		}
		var both sync.WaitGroup
		for range 2 {
			c := w.collector(nil)
			both.Go(func() {
				for range 3 {
					if _, err := c.Collect(t.Context(), compactor.CollectOptions{Force: true}); err != nil {
						t.Errorf("after a kill at call %d: %v", at, err)
					}
				}
			})
		}
		both.Wait()
		if diff := cmp.Diff(w.named(), w.objects()); diff != "" {
			t.Fatalf("after a kill at call %d (-named +there):\n%s", at, diff)
		}
		rows, err := metadata.ListGateways(t.Context(), w.table, metadata.Strong, nil)
		if w.must(err); len(rows) != 2 { // b's merged segment lives on
			t.Errorf("after a kill at call %d: gateways %v", at, rows)
		}
	}
}

var errCollectorKilled = errors.New("killed")

type mortalStore struct {
	segments.Store
	each func() error
}

func (m mortalStore) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	if err := m.each(); err != nil {
		return nil, 0, err
	}
	return m.Store.Get(ctx, key, offset, length)
}

func (m mortalStore) Put(ctx context.Context, key string, body segments.Body) error {
	if err := m.each(); err != nil {
		return err
	}
	return m.Store.Put(ctx, key, body)
}

func (m mortalStore) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	if err := m.each(); err != nil {
		return nil, err
	}
	return m.Store.List(ctx, prefix, after, limit)
}

func (m mortalStore) Delete(ctx context.Context, key string) error {
	if err := m.each(); err != nil {
		return err
	}
	return m.Store.Delete(ctx, key)
}

type mortalTable struct {
	metadata.Table
	each func() error
}

func (m mortalTable) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	if err := m.each(); err != nil {
		return metadata.Row{}, err
	}
	return m.Table.Get(ctx, key, c)
}

func (m mortalTable) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	if err := m.each(); err != nil {
		return nil, err
	}
	return m.Table.Range(ctx, r)
}

func (m mortalTable) Put(ctx context.Context, row metadata.Row, c metadata.Condition) error {
	if err := m.each(); err != nil {
		return err
	}
	return m.Table.Put(ctx, row, c)
}

func (m mortalTable) Delete(ctx context.Context, key metadata.Key, c metadata.Condition) error {
	if err := m.each(); err != nil {
		return err
	}
	return m.Table.Delete(ctx, key, c)
}

// host is a gateway that says when there is something to collect.
type host struct {
	*forgery
	mu      sync.Mutex
	first   bool
	count   uint64
	changed chan struct{}
}

func (h *host) First() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.first
}

func (h *host) Litter() (uint64, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count, h.changed
}

func (h *host) note(first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.first = first
	h.count++
	close(h.changed)
	h.changed = make(chan struct{})
}

// Beside a gateway a collection comes when there is garbage, and not while nothing happens: no LIST, no read.
func TestCollectWhenThereIsGarbage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newForgery(t)
		a := w.begin()
		store := storetest.NewFaulty(w.store)
		h := &host{forgery: w, changed: make(chan struct{})}
		reads := 0
		c := w.collector(func(config *compactor.CollectConfig) {
			config.Store, config.Gateways, config.Grace, config.Parallel = store, h, 10*time.Minute, 1
			config.Table = steppingTable{w.table, func() { reads++ }}
		})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run(ctx, h) })
		quiet := func(what string) {
			t.Helper()
			before := store.Calls(storetest.List) + reads
			time.Sleep(48 * time.Hour)
			if got := store.Calls(storetest.List) + reads; got != before {
				t.Errorf("%s: %d LISTs and reads", what, got-before)
			}
		}
		quiet("nothing ever happened")
		a.upload(1, 0)
		a.flying = nil
		a.beat()
		h.note(false)
		quiet("another gateway comes first")
		h.note(true)
		synctest.Wait()
		lists := store.Calls(storetest.List)
		time.Sleep(10*time.Minute + time.Second)
		w.wantObjects()
		if got := store.Calls(storetest.List) - lists; got > 2 { // of the generations, and that again
			t.Errorf("the last look cost %d LISTs", got)
		}
		time.Sleep(3 * time.Hour)
		quiet("all is collected")

		// Candidates that cannot be looked at once more are tried again, now and then.
		a.upload(1, 0)
		a.flying = nil
		a.beat()
		h.note(true)
		time.Sleep(time.Minute)
		store.Decide(func(call storetest.Call) storetest.Fault {
			if call.Op == storetest.List {
				return storetest.Fault{Before: segments.ErrUnavailable}
			}
			return storetest.Fault{}
		})
		lists = store.Calls(storetest.List)
		time.Sleep(20 * time.Minute)
		if got := store.Calls(storetest.List) - lists; got < 5 || got > 15 {
			t.Errorf("%d tries in the eleven minutes after the grace", got)
		}
		store.Decide(nil)
		time.Sleep(2 * time.Minute)
		w.wantObjects()
		time.Sleep(3 * time.Hour)

		// One an hour, whatever happens.
		lists = store.Calls(storetest.List)
		for range 300 {
			a.upload(1, 0)
			a.flying = nil
			a.beat()
			h.note(true)
			time.Sleep(time.Minute)
		}
		if got, most := store.Calls(storetest.List)-lists, 6*8; got > most || got == 0 {
			t.Errorf("%d LISTs in five hours, want %d at most", got, most)
		}
		time.Sleep(2 * time.Hour)
		w.wantObjects()
		cancel()
		running.Wait()
	})
}
