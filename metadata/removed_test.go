package metadata_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
)

// TestSweepPartition: rows of a partition go once its lease row says that it is closed, the lease row last, and what
// late writers leave goes in the final sweep alone.
func TestSweepPartition(t *testing.T) {
	ctx, table := t.Context(), memtable.New()
	for _, g := range []metadata.GatewayID{"g1", "g2"} {
		if _, err := metadata.RegisterGateway(ctx, table, metadata.Gateway{ID: g}); err != nil {
			t.Fatal(err)
		}
	}
	o := arrive(t, table, "g1")
	id := o.state.ID()
	for i := range 3 {
		o.refer(t, reference(uint64(i+1), plain()))
	}
	r := metadata.RemovedTopic{ID: id.Topic, Name: "a", Partitions: id.Number + 1}
	sweep := func(final, want bool) {
		t.Helper()
		if left, err := r.SweepPartition(ctx, table, id.Number, final); err != nil || left != want {
			t.Errorf("left %v, %v; want %v", left, err, want)
		}
	}
	rows := func(want int) {
		t.Helper()
		if got, err := table.Range(ctx, metadata.PartitionRows(id)); err != nil || len(got) != want {
			t.Errorf("%d rows, %v; want %d: %v", len(got), err, want, got)
		}
	}
	put := func(key metadata.Key) {
		t.Helper()
		row := metadata.Row{Key: key, Stamp: metadata.Stamp{Epoch: 1, Sequence: 1}, Nonce: metadata.NewNonce()}
		if err := table.Put(ctx, row, metadata.IfAbsent()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		put(id.PageKey(metadata.RowPlace{First: int64(1000 + i)}))
	}
	sweep(false, true) // it is not closed
	rows(6)
	o.decide(t, o.state.JudgeClose())
	sweep(false, true) // the lease row does not say so
	rows(6)
	o.checkpoint(t, table, false)
	sweep(false, false)
	rows(0)
	put(id.PageKey(metadata.RowPlace{First: 7})) // of a checkpoint that came late
	sweep(false, false)
	rows(0)
	arrive(t, table, "g2") // a late taker, which is killed before it looks
	sweep(false, true)
	rows(1)
	if err := metadata.MarkSealed(ctx, table, "g2", time.Now()); err != nil {
		t.Fatal(err)
	}
	sweep(false, false)
	rows(0)
	put(id.LeaseKey()) // whatever this is
	if _, err := r.SweepPartition(ctx, table, id.Number, false); !errors.Is(err, metadata.ErrCorrupt) {
		t.Errorf("a row that cannot be read: %v", err)
	}
	rows(1)
	sweep(true, false)
	rows(0)
}

// TestRemovedTopics: the row of a removed topic is there once, whoever writes it how often.
func TestRemovedTopics(t *testing.T) {
	ctx, table := t.Context(), memtable.New()
	topics := metadata.NewTopics(table)
	var ids []metadata.TopicID
	for i := range 2 {
		topic, err := topics.Create(ctx, fmt.Sprint(i), 3, nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, topic.ID)
		if there, err := metadata.IsRemoved(ctx, table, topic.ID); there || err != nil {
			t.Errorf("%v, %v", there, err)
		}
		for range 2 {
			if err := metadata.NoteRemoved(ctx, table, topic); err != nil {
				t.Fatal(err)
			}
		}
	}
	list, err := metadata.ListRemoved(ctx, table)
	if err != nil || len(list) != 2 || list[0].Partitions != 3 || list[0].Swept || !list[0].Topic().Removed() || !slices.Contains(ids, list[0].ID) {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, g := range []metadata.GatewayID{"g1", "g2", "g3"} {
		if _, err := metadata.RegisterGateway(ctx, table, metadata.Gateway{ID: g}); err != nil {
			t.Fatal(err)
		}
	}
	if err := metadata.MarkClosed(ctx, table, "g1"); err != nil {
		t.Fatal(err)
	}
	was := list[0]
	if err := list[0].MarkSwept(ctx, table); err != nil || len(list[0].Waits) != 2 {
		t.Fatalf("%+v, %v", list[0], err)
	}
	if err := was.MarkSwept(ctx, table); !errors.Is(err, metadata.ErrConflict) {
		t.Errorf("two of them at once: %v", err)
	}
	if err := was.Finish(ctx, table); !errors.Is(err, metadata.ErrConflict) {
		t.Errorf("the row as it was is finished: %v", err)
	}
	if err := metadata.MarkClosed(ctx, table, "g2"); err != nil {
		t.Fatal(err)
	}
	if _, err := metadata.RegisterGateway(ctx, table, metadata.Gateway{ID: "g4"}); err != nil { // it never knew of the topic
		t.Fatal(err)
	}
	if waiting, err := list[0].Waiting(ctx, table); err != nil || len(waiting) != 1 || waiting[0] != "g3" {
		t.Errorf("it waits for %v, %v", waiting, err)
	}
	if err := list[0].Finish(ctx, table); err != nil {
		t.Fatal(err)
	}
	if list, err := metadata.ListRemoved(ctx, table); err != nil || len(list) != 2 || !list[0].Done || list[1].Done {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestReadRemoved: the rows of a deleted topic's partition being gone, it is read as closed, not as one that nobody has
// appended to: some gateway may still know the topic by its name, which is another one's by now.
func TestReadRemoved(t *testing.T) {
	ctx, table := t.Context(), memtable.New()
	id := metadata.PartitionID{Topic: metadata.NewTopicID(), Number: 0}
	if v, err := metadata.ReadView(ctx, table, id); err != nil || v.Closed || v.Next != 0 {
		t.Fatalf("never used: %+v %v", v, err)
	}
	if err := metadata.NoteRemoved(ctx, table, &metadata.Topic{ID: id.Topic, Name: "a", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	v, err := metadata.ReadView(ctx, table, id)
	if err != nil || !v.Closed {
		t.Errorf("removed: %+v %v", v, err)
	}
	late := metadata.PartitionID{Topic: id.Topic, Number: 1} // of which a late taker has put a lease row
	if _, _, err := metadata.Acquire(ctx, table, late, openJournal(t, table, "late"), nil); err != nil {
		t.Fatal(err)
	}
	if v, err := metadata.ReadView(ctx, table, late); err != nil || !v.Closed {
		t.Errorf("removed, and taken: %+v %v", v, err)
	}
	o := arrive(t, table, "g1")
	o.refer(t, reference(1, plain()))
	if was := o.state.View(); !v.Newer(was) || was.Newer(v) || !v.Newer(v) {
		t.Error("a reader keeps the view of the time before")
	}
}
