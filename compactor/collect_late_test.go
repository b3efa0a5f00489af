package compactor_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/storetest"
)

// lateRows are rows of a topic that was deleted and swept: a swap that was being prepared writes its own after that.
func lateRows(t *testing.T, w *forgery, a *forged) {
	t.Helper()
	for range 70 {
		a.upload(1, 0)
		a.settle(true)
	}
	a.checkpoint(0, false)
	s := a.parts[0].state.View().Sections()[0]
	entries, err := s.Load(t.Context(), metadata.TableIndex{Table: w.table})
	w.must(err)
	a.commit(a.parts[0], a.parts[0].state.JudgeClose())
	a.checkpoint(0, false)
	topic, err := w.topics.MarkDeleting(t.Context(), "a")
	w.must(err)
	w.must(metadata.NoteRemoved(t.Context(), w.table, topic))
	w.must(w.topics.Remove(t.Context(), topic))
	removed, err := metadata.ListRemoved(t.Context(), w.table)
	w.must(err)
	for n := range int32(partitions) {
		if left, err := removed[0].SweepPartition(t.Context(), w.table, n, false); left || err != nil {
			t.Fatalf("left: %v, %v", left, err)
		}
	}
	w.must(removed[0].MarkSwept(t.Context(), w.table))
	_, err = metadata.PrepareSwap(t.Context(), w.table, s, metadata.MergerID(a.id), 1, entries)
	w.must(err)
}

func rowsOf(t *testing.T, w *forgery, partition int32) []metadata.Row {
	t.Helper()
	var rows []metadata.Row
	for row, err := range metadata.Rows(t.Context(), w.table, metadata.PartitionRows(w.id(partition))) {
		w.must(err)
		rows = append(rows, row)
	}
	return rows
}

// TestRowsAfterTheSweep: rows that come to a partition of a deleted topic after its sweep hold up nothing, and go.
func TestRowsAfterTheSweep(t *testing.T) {
	w := newForgery(t)
	a := w.begin()
	lateRows(t, w, a)
	if len(rowsOf(t, w, 0)) == 0 {
		t.Fatal("there are no late rows")
	}
	c := w.collector(nil)
	if r := w.collect(c, compactor.CollectOptions{DryRun: true}); r.Deleted != 70 || r.Rows == 0 {
		t.Errorf("would delete %d objects and %d rows; kept %v", r.Deleted, r.Rows, r.Kept)
	}
	r := w.collect(c, compactor.CollectOptions{})
	if r.Deleted != 70 || len(r.Unclear) > 0 {
		t.Errorf("deleted %d objects; unclear %v, kept %v", r.Deleted, r.Unclear, r.Kept)
	}
	w.wantObjects()
	if rows := rowsOf(t, w, 0); len(rows) > 0 {
		t.Errorf("%d rows stay, the first is %s", len(rows), rows[0].Key)
	}
}

// TestNoLeaseRowOfATopic: a topic that nobody deleted has lost a lease row. That is damage, and nothing of the partition goes.
func TestNoLeaseRowOfATopic(t *testing.T) {
	w := newForgery(t)
	a := w.begin()
	for range 70 {
		a.upload(1, 0)
		a.settle(true)
	}
	a.checkpoint(0, false)
	a.trimJournal()
	row, err := w.table.Get(t.Context(), w.id(0).LeaseKey(), metadata.Strong)
	w.must(err)
	w.must(w.table.Delete(t.Context(), row.Key, metadata.IfEqual(row.Stamp)))
	rows := len(rowsOf(t, w, 0))
	objects := len(w.objects())
	c := w.collector(nil)
	if r := w.collect(c, compactor.CollectOptions{Force: true}); r.Deleted+r.Rows > 0 || r.Kept[compactor.KeptUnclear] != int64(objects) {
		t.Errorf("deleted %d objects and %d rows; kept %v", r.Deleted, r.Rows, r.Kept)
	}
	if n := len(rowsOf(t, w, 0)); n != rows || len(w.objects()) != objects {
		t.Errorf("%d of %d rows are left, %d of %d objects", n, rows, len(w.objects()), objects)
	}
}

// beside runs a collector beside a gateway that comes first.
func beside(t *testing.T, w *forgery, test func(c *compactor.Collector, h *host, store *storetest.Faulty)) {
	store := storetest.NewFaulty(w.store)
	h := &host{forgery: w, first: true, changed: make(chan struct{})}
	c := w.collector(func(config *compactor.CollectConfig) {
		config.Store, config.Gateways, config.Grace = store, h, 10*time.Minute
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = c.Run(ctx, h) })
	test(c, h, store)
	cancel()
	running.Wait()
}

// TestGraceOfAsked: what a collection finds that somebody asked for goes when its grace is over, although nothing else happens.
func TestGraceOfAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newForgery(t)
		a := w.begin()
		beside(t, w, func(c *compactor.Collector, h *host, store *storetest.Faulty) {
			a.upload(1, 0)
			a.flying = nil
			a.beat()
			synctest.Wait()
			w.collect(c, compactor.CollectOptions{})
			if len(w.objects()) != 1 {
				t.Fatalf("before the grace is over: %v", w.objects())
			}
			time.Sleep(10*time.Minute + time.Second)
			w.wantObjects()
			time.Sleep(3 * time.Hour)
			lists := store.Calls(storetest.List)
			if time.Sleep(48 * time.Hour); store.Calls(storetest.List) != lists {
				t.Errorf("%d LISTs although nothing is left", store.Calls(storetest.List)-lists)
			}
		})
	})
}

// TestGarbageThatNobodyTellsOf: the reason for which an object stays ends, and nobody counts that as garbage. It is looked at again by
// itself, ever more seldom while nothing comes of it.
func TestGarbageThatNobodyTellsOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newForgery(t)
		a := w.begin()
		beside(t, w, func(c *compactor.Collector, h *host, store *storetest.Faulty) {
			a.upload(1, 0) // it is on its way
			h.note(true)
			time.Sleep(11 * time.Minute)
			before := store.Calls(storetest.List)
			time.Sleep(10 * 24 * time.Hour)
			if got := store.Calls(storetest.List) - before; got < 3*10 || got > 3*20 {
				t.Errorf("%d LISTs in ten days", got)
			}
			if len(w.objects()) != 1 {
				t.Fatalf("%v is left", w.objects())
			}
			a.flying = nil
			a.beat()
			time.Sleep(24*time.Hour + 11*time.Minute)
			w.wantObjects()
			time.Sleep(48 * time.Hour)
			before = store.Calls(storetest.List)
			if time.Sleep(10 * 24 * time.Hour); store.Calls(storetest.List) != before {
				t.Errorf("%d LISTs although nothing is left", store.Calls(storetest.List)-before)
			}
		})
	})
}

// TestUnreadableIsLookedAtAgain: an object that nobody can tell the partitions of stays, and goes once it can be read again, although nothing
// becomes garbage then.
func TestUnreadableIsLookedAtAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newForgery(t)
		a := w.begin()
		beside(t, w, func(c *compactor.Collector, h *host, store *storetest.Faulty) {
			object := w.build(a.id, 5, 1, 1)
			w.must(w.store.Put(t.Context(), object.Key(), segments.NewBody([]byte("no segment"))))
			a.number = 5
			a.beat()
			h.note(true)
			time.Sleep(12 * time.Hour)
			if len(w.objects()) != 1 {
				t.Fatalf("%v is left", w.objects())
			}
			w.must(w.store.Delete(t.Context(), object.Key()))
			w.must(w.store.Put(t.Context(), object.Key(), object))
			time.Sleep(24*time.Hour + 11*time.Minute)
			w.wantObjects()
		})
	})
}

// TestWaitCountsWhatGoesMeanwhile: when the grace of what somebody waits for is over, the collector may be the first to delete it by itself. Who
// waits is told of it all the same.
func TestWaitCountsWhatGoesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newForgery(t)
		a := w.begin()
		beside(t, w, func(c *compactor.Collector, h *host, store *storetest.Faulty) {
			a.upload(1, 0)
			a.flying = nil
			a.beat()
			w.collect(c, compactor.CollectOptions{})
			time.Sleep(5 * time.Minute) // half of its grace
			report := w.collect(c, compactor.CollectOptions{Wait: true})
			if report.Deleted != 1 || report.DeletedBytes == 0 || report.Gateways != 0 || report.Rows != 0 {
				t.Errorf("it tells of %d objects of %d bytes, %d rows, %d gateways", report.Deleted, report.DeletedBytes, report.Rows, report.Gateways)
			}
			w.wantObjects()
		})
	})
}
