package compactor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
)

// removalBed is a log and a catalog in a table in memory, and one gateway's removals.
type removalBed struct {
	*metadata.Topics
	table *memtable.Table

	mu     sync.Mutex
	theirs bool // another gateway looks after everything
	// deletes are the tries to delete a topic; fail, if set, says how they end.
	deletes []string
	fail    func() error

	*Removal
}

func newRemovalBed(t *testing.T) *removalBed {
	b := &removalBed{table: memtable.New()}
	b.Topics = metadata.NewTopics(b.table)
	b.Removal = NewRemoval(RemovalConfig{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, b.table, b, b.Topics)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return b
}

func (b *removalBed) Mine(metadata.PartitionID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.theirs
}

// Delete ends the deletion of a topic none of whose partitions has rows.
func (b *removalBed) Delete(ctx context.Context, topic *metadata.Topic) error {
	b.mu.Lock()
	b.deletes = append(b.deletes, topic.Name)
	fail := b.fail
	b.mu.Unlock()
	if fail != nil {
		if err := fail(); err != nil {
			return err
		}
	}
	if err := metadata.NoteRemoved(ctx, b.table, topic); err != nil {
		return err
	}
	return b.Remove(ctx, topic)
}

// mark marks a new topic for deletion, and no more: whoever was asked for it died.
func (b *removalBed) mark(t *testing.T, name string) metadata.TopicID {
	t.Helper()
	topic, err := b.Create(t.Context(), name, 3, nil, time.Now())
	if err == nil {
		_, err = b.MarkDeleting(t.Context(), name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return topic.ID
}

// expect compares the tries so far, and whether a topic's name is free.
func (b *removalBed) expect(t *testing.T, tries int, name string, free bool) {
	t.Helper()
	synctest.Wait()
	b.mu.Lock()
	got := len(slices.DeleteFunc(slices.Clone(b.deletes), func(of string) bool { return of != name }))
	b.mu.Unlock()
	_, err := b.Refresh(t.Context(), name)
	if isFree := errors.Is(err, metadata.ErrTopicNotFound); got != tries || isFree != free {
		t.Errorf("%d tries, want %d; free %v, want %v: %v", got, tries, isFree, free, err)
	}
}

// TestDeletionGoesOn: the gateway that was asked to delete a topic died after it had marked it. Another one leaves it alone for a
// minute, then goes on, time and again, and removes the rows as those of any other.
func TestDeletionGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRemovalBed(t)
		b.fail = func() error {
			if len(b.deletes) < 3 {
				return fmt.Errorf("%w: out", metadata.ErrUnavailable)
			}
			return nil
		}
		id := b.mark(t, "a")
		b.Changed()
		time.Sleep(59 * time.Second)
		b.expect(t, 0, "a", false)
		b.Changed() // something else happens, and puts it off no further
		time.Sleep(2 * time.Second)
		b.expect(t, 1, "a", false)
		time.Sleep(time.Minute)
		b.expect(t, 2, "a", false)
		time.Sleep(2 * time.Minute)
		b.expect(t, 3, "a", true)
		time.Sleep(2 * time.Minute)
		removed, err := metadata.ListRemoved(t.Context(), b.table)
		if err != nil || len(removed) != 1 || removed[0].ID != id || removed[0].Partitions != 3 || !removed[0].Swept {
			t.Errorf("the rows are not swept: %+v, %v", removed, err)
		}
		b.expect(t, 3, "a", true)
	})
}

// TestDeletionOfOthers: a deletion is another gateway's to go on with, until that one goes; and one that ends by itself is left alone.
func TestDeletionOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRemovalBed(t)
		b.theirs = true
		b.mark(t, "a")
		b.Changed()
		time.Sleep(2 * time.Hour)
		b.expect(t, 0, "a", false)
		b.mu.Lock()
		b.theirs = false
		b.mu.Unlock()
		b.Changed()
		time.Sleep(61 * time.Second)
		b.expect(t, 1, "a", true)

		b.mark(t, "b")
		b.Changed()
		time.Sleep(30 * time.Second)
		topic, err := b.Refresh(t.Context(), "b")
		if err == nil {
			err = metadata.NoteRemoved(t.Context(), b.table, topic)
		}
		if err == nil {
			err = b.Topics.Remove(t.Context(), topic)
		}
		if err != nil {
			t.Fatal(err)
		}
		b.Changed()
		time.Sleep(time.Hour)
		b.expect(t, 0, "b", true)

		// Nobody told of this one.
		b.mark(t, "c")
		time.Sleep(time.Hour + 2*time.Minute)
		b.expect(t, 1, "c", true)
	})
}
