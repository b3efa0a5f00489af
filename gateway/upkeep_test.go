package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments/batch"
)

// TestClockADayAhead: a gateway whose clock is a day ahead goes by the others', as long as there are any.
func TestClockADayAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		logged := c.keepLog()
		start := func(off time.Duration) *member {
			c.d.Now = func() time.Time { return time.Now().Add(off).Round(0) }
			return c.start()
		}
		off := func(m *member) time.Duration { return time.Until(m.Upkeep().Clock()).Round(time.Minute) }
		ahead := start(24 * time.Hour)
		c.settle()
		if got := off(ahead); got != 24*time.Hour {
			t.Errorf("alone it is off by %s: nobody else could say", got)
		}
		right := start(0)
		c.settle()
		for _, m := range []*member{ahead, right} {
			if got := off(m); got != 0 {
				t.Errorf("of two gateways one is off by %s", got)
			}
		}
		time.Sleep(10 * time.Hour) // what the rows said is long ago, and goes on
		if got := off(ahead); got != 0 {
			t.Errorf("ten hours later it is off by %s", got)
		}
		// One that is far behind is in the minority, and so is one that is far ahead.
		behind := start(-24 * time.Hour)
		c.settle()
		for _, m := range []*member{ahead, right} {
			if got := off(m); got != 0 {
				t.Errorf("of three gateways one is off by %s", got)
			}
		}
		if got := off(behind); got != -24*time.Hour {
			t.Errorf("the one that is behind is off by %s: late does no harm", got)
		}
		behind.kill() // dead gateways' clocks do not count
		time.Sleep(10 * time.Second)
		if got := off(right); got != 0 {
			t.Errorf("it is off by %s", got)
		}
		if n := len(logged.with("clock of this host is far ahead")); n != 1 {
			t.Errorf("it was warned of %d times", n)
		}
		ahead.drain()
		right.drain()
	})
}

// rowsOf lists the rows of a partition.
func (c *testCluster) rowsOf(id metadata.PartitionID) []string {
	c.t.Helper()
	var list []string
	for row, err := range metadata.Rows(c.t.Context(), c.d.Table, metadata.PartitionRows(id)) {
		if err != nil {
			c.t.Fatal(err)
		}
		list = append(list, row.Sort)
	}
	return list
}

// sweep removes the rows of removed topics, and returns of how many partitions some are left.
func (c *testCluster) sweep(final bool) (left int) {
	c.t.Helper()
	removed, err := metadata.ListRemoved(c.t.Context(), c.d.Table)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, r := range removed {
		for n := range r.Partitions {
			there, err := r.SweepPartition(c.t.Context(), c.d.Table, n, final)
			if err != nil {
				c.t.Fatal(err)
			}
			if there {
				left++
			}
		}
	}
	return left
}

// TestRowsOfRemovedTopics: the rows of a deleted topic go, late writers are refused all the same, on each gateway and
// after takeovers, a topic of the same name is another one, and what reminds of the topic goes in the end.
func TestRowsOfRemovedTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		logged := c.keepLog()
		members := []*member{c.start(), c.start(), c.start()}
		topic := members[0].create(t, "a", clusterPartitions, nil)
		c.settle()
		for p := range int32(clusterPartitions) {
			if _, err := members[0].append("a", p, "x"); err != nil {
				t.Fatal(err)
			}
		}
		if n := c.sweep(false); n != 0 {
			t.Fatalf("%d partitions of nothing", n)
		}
		service := &topicService{members[1].Gateway}
		if _, err := service.DeleteTopic(t.Context(), &varvev1.DeleteTopicRequest{Name: "a"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the last checkpoints
		if n := c.sweep(false); n != 0 {
			t.Fatalf("%d partitions have rows left", n)
		}
		late := func() {
			t.Helper()
			for _, m := range members {
				for p := range int32(clusterPartitions) {
					id := metadata.PartitionID{Topic: topic.ID, Number: p}
					offset := int64(1)
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					if _, err := m.router.decide(ctx, id, decision{trim: &offset}); !errors.Is(err, metadata.ErrClosed) {
						t.Errorf("a late trim of partition %d: %v", p, err)
					}
					ref := &metadata.Reference{Partition: id, Uploader: m.ID(), Number: 1000 + uint64(p), Batches: []metadata.Batch{{Position: 100, Size: 100,
						Offsets: 1, Records: 1, ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}}}
					var refused error
					err := m.router.refer(ctx, []*metadata.Reference{ref}, nil, func(_ int, _ metadata.Verdict, err error) { refused = err })
					if cancel(); err != nil || !errors.Is(refused, metadata.ErrClosed) {
						t.Errorf("a late append to partition %d: %v, %v", p, refused, err)
					}
					if rows := c.rowsOf(id); len(rows) > 0 {
						t.Errorf("partition %d has rows again: %v", p, rows)
					}
				}
			}
		}
		late()
		dead := members[2].ID()
		members[2].kill() // its journal tells of partitions that are gone
		members = members[:2]
		time.Sleep(5 * c.config.LeaseTime)
		if lines := logged.with("not all partitions of gateways that are gone"); len(lines) > 0 {
			t.Errorf("a takeover stumbles over what is gone: %s", lines[0])
		}
		late()
		again := members[0].create(t, "a", 1, nil)
		if offset, err := members[1].append("a", 0, "y"); err != nil || offset != 0 || again.ID == topic.ID {
			t.Errorf("the first append to the new topic: %d, %v", offset, err)
		}
		removed, err := metadata.ListRemoved(t.Context(), c.d.Table)
		if err != nil || len(removed) != 1 || removed[0].ID != topic.ID || removed[0].Name != "a" {
			t.Fatalf("%+v, %v", removed, err)
		}
		r := removed[0]
		if err := r.MarkSwept(t.Context(), c.d.Table); err != nil {
			t.Fatal(err)
		}
		waiting := func(want int) {
			t.Helper()
			if list, err := r.Waiting(t.Context(), c.d.Table); err != nil || len(list) != want {
				t.Errorf("it waits for %v, %v; want %d", list, err, want)
			}
		}
		waiting(3) // one is sealed: its disk may come back
		members[0].drain()
		waiting(2)
		if id := members[1].ID(); !strings.HasPrefix(string(id), "g") || members[1].append2(t, "a") != 1 {
			t.Error("the last one does not go on")
		}
		members[1].drain()
		if err := metadata.MarkClosed(t.Context(), c.d.Table, dead); err != nil {
			t.Fatal(err)
		}
		waiting(0)
		if err := r.Finish(t.Context(), c.d.Table); err != nil {
			t.Fatal(err)
		}
		// Who goes on under a new id may still know the topic.
		if there, err := metadata.IsRemoved(t.Context(), c.d.Table, topic.ID); !there || err != nil {
			t.Errorf("%v, %v", there, err)
		}
	})
}

// TestDeletionOfADeadGateway: a gateway dies in the middle of deleting a topic. Another one takes it to its end: what was open is closed, the
// name is free, and whoever collects hears of it even when all was closed before.
func TestDeletionOfADeadGateway(t *testing.T) {
	for _, at := range []string{"the first partition", "the row about the deletion", "the name"} {
		t.Run(at, func(t *testing.T) { testDeletionOfADeadGateway(t, at) })
	}
}

func testDeletionOfADeadGateway(t *testing.T, at string) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		dying, heir := c.start(), c.start()
		topic := dying.create(t, "a", clusterPartitions, nil)
		c.settle()
		for p := range int32(clusterPartitions) {
			if _, err := heir.append("a", p, "x"); err != nil {
				t.Fatal(err)
			}
		}
		marked, reached := false, make(chan struct{})
		reach := sync.OnceFunc(func() { close(reached) })
		var mu sync.Mutex
		dying.table.set(func(op metadata.Op, key metadata.Key) error {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case op != metadata.OpPut:
			case key.Partition == "topics" && !marked:
				marked = true
			case at == "the first partition" && strings.HasPrefix(key.Partition, "journal/"), at == "the row about the deletion" && key.Partition == "removed",
				at == "the name" && key.Partition == "topics":
				reach()
				return fmt.Errorf("%w: it dies", metadata.ErrUnavailable)
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		deleting := make(chan struct{})
		go func() {
			defer close(deleting)
			_, _ = (&topicService{dying.Gateway}).DeleteTopic(ctx, &varvev1.DeleteTopicRequest{Name: "a"})
		}()
		<-reached
		dying.kill()
		cancel()
		<-deleting
		time.Sleep(5 * c.config.LeaseTime)

		left, err := heir.topics.Refresh(t.Context(), "a")
		if err != nil || left.State != metadata.TopicDeleting {
			t.Fatalf("it was deleted already: %+v, %v", left, err)
		}
		before, _ := heir.Litter()
		for range 2 { // the second time there is nothing to do
			if err := heir.Upkeep().Delete(t.Context(), left); err != nil {
				t.Fatal(err)
			}
		}
		if after, _ := heir.Litter(); after == before {
			t.Error("nobody hears of what became garbage")
		}
		if removed, err := metadata.IsRemoved(t.Context(), c.d.Table, topic.ID); !removed || err != nil {
			t.Errorf("no row says that it was deleted: %v", err)
		}
		if again := heir.create(t, "a", 1, nil); again.ID == topic.ID {
			t.Error("it is there yet")
		}
		time.Sleep(time.Second) // the last checkpoints
		if n := c.sweep(false); n != 0 {
			t.Errorf("%d partitions have rows left", n)
		}
		heir.drain()
	})
}

// append2 appends once more.
func (m *member) append2(t *testing.T, topic string) int64 {
	t.Helper()
	offset, err := m.append(topic, 0, "z")
	if err != nil {
		t.Fatal(err)
	}
	return offset
}

// TestTakerOfARemovedTopic: a gateway read that a partition has no lease row, and was held up until the topic was
// deleted and its rows were gone. Then it puts its row.
func TestTakerOfARemovedTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		m := c.start()
		topic := m.create(t, "a", 1, nil)
		id := metadata.PartitionID{Topic: topic.ID}
		var once sync.Once
		m.table.set(func(op metadata.Op, key metadata.Key) error {
			if op == metadata.OpPut && key == id.LeaseKey() {
				once.Do(func() {
					if err := metadata.NoteRemoved(t.Context(), c.d.Table, topic); err != nil {
						t.Error(err)
					}
				})
			}
			return nil
		})
		p := m.partitions.get(id)
		defer p.subscribe(make(wakeUp, 1))()
		_, err := m.append("a", 0, "x")
		if code := connect.CodeOf(classified(err)); code != connect.CodeNotFound {
			t.Errorf("it was taken: %v", err)
		}
		if rows := c.rowsOf(id); len(rows) > 0 {
			t.Errorf("rows are left: %v", rows)
		}
		if v := p.view.Load(); v == nil || !v.Closed {
			t.Errorf("followers are not told: %+v", v)
		}
		m.drain()
	})
}

// TestRowsGoWhileHeld: a gateway still writes a checkpoint of a closed partition whose rows have been removed. It
// is not fenced for that.
func TestRowsGoWhileHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		m := c.start()
		topic := m.create(t, "a", 2, nil)
		id := metadata.PartitionID{Topic: topic.ID}
		for p := range int32(2) {
			if _, err := m.append("a", p, "x"); err != nil {
				t.Fatal(err)
			}
		}
		was := m.ID()
		m.table.set(func(op metadata.Op, key metadata.Key) error {
			if op == metadata.OpPut && key == id.LeaseKey() {
				return c.d.Table.Delete(t.Context(), key, metadata.Condition{})
			}
			return nil
		})
		if _, err := m.router.decide(t.Context(), id, decision{close: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if rows := c.rowsOf(id); len(rows) > 0 {
			t.Fatalf("the checkpoint was written: %v", rows)
		}
		if _, err := m.append("a", 1, "y"); err != nil || m.ID() != was {
			t.Errorf("it goes by the id %s, was %s: %v", m.ID(), was, err)
		}
		if held := m.tenure.Load().sequencer.holding.Load(); held != 1 {
			t.Errorf("it holds %d partitions", held)
		}
		m.drain()
	})
}

// TestTrimFreesRows: a trim removes the rows of the index that it passes, without waiting for more appends.
func TestTrimFreesRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		m := c.start()
		topic := m.create(t, "a", 1, nil)
		id := metadata.PartitionID{Topic: topic.ID}
		for i := range 1200 {
			m.produce(t, "a", 0, batch.Record{Timestamp: int64(1000 * (i + 1)), Value: fmt.Appendf(nil, "v%d", i)})
		}
		pages := len(c.rowsOf(id)) - 1
		if pages < 4 {
			t.Fatalf("%d pages: this proves nothing", pages)
		}
		service := &topicService{m.Gateway}
		trim := func(to *varvev1.TrimPlace) {
			t.Helper()
			if _, err := service.TrimTopic(t.Context(), &varvev1.TrimTopicRequest{Name: "a", Partitions: []int32{0}, To: to}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		trim(&varvev1.TrimPlace{At: &varvev1.TrimPlace_Time{Time: 600_500}})
		// Of those that begin at or before offset 600 only the last one is needed.
		if rows, at := c.rowsOf(id), "page/0000000000000258"; len(rows) > pages || rows[1] > at || rows[2] <= at {
			t.Errorf("half of the log has gone, and of %d pages there are left %v", pages, rows[1:])
		}
		_, err := m.log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a", Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: 7}}})
		var failed *refusal
		if !errors.As(err, &failed) || failed.code != connect.CodeOutOfRange || failed.info.GetLogStartOffset() != 600 || failed.info.GetNextOffset() != 1200 {
			t.Errorf("a read below the start: %v", err)
		}
		trim(&varvev1.TrimPlace{At: &varvev1.TrimPlace_Latest{Latest: true}})
		if rows := c.rowsOf(id); len(rows) != 1 {
			t.Errorf("%v are left of nothing", rows)
		}
		m.drain()
	})
}

// TestRetentionBesideAMerge: a merge is under way when a topic's retention becomes another one, and what it merges goes. The
// swap changes nothing then; the next one, of what is left, is taken, and retention goes on over it.
func TestRetentionBesideAMerge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		m := c.start()
		topic := m.create(t, "a", 1, nil)
		id := metadata.PartitionID{Topic: topic.ID}
		m.fill(t, "a", 10)
		merge := func(number uint64) *metadata.Swap {
			t.Helper()
			v, err := m.viewNow(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			s := v.Sections()[0]
			entries, err := s.Load(t.Context(), m.reader.index)
			if err != nil {
				t.Fatal(err)
			}
			w, err := metadata.PrepareSwap(t.Context(), m.table, s, metadata.MergerID(m.ID()), number, entries)
			if err != nil {
				t.Fatal(err)
			}
			return w
		}
		expire := func(now, want int64) {
			t.Helper()
			_, e, err := m.Upkeep().Expired(t.Context(), id, metadata.Retention{Millis: 1000, Bytes: -1}, now)
			if err != nil || e.To != want {
				t.Fatalf("%+v, %v; want %d", e, err, want)
			}
			if err := m.Upkeep().Trim(t.Context(), topic, id, e.To); err != nil {
				t.Fatal(err)
			}
		}
		late := merge(1)
		expire(6000, 4) // timestamps are 1000 to 10000
		if outcome, err := m.Swap(t.Context(), late); err != nil || outcome != metadata.SwapMoved {
			t.Errorf("a swap of what has gone: %v, %v", outcome, err)
		}
		if outcome, err := m.Swap(t.Context(), merge(2)); err != nil || outcome != metadata.Swapped {
			t.Errorf("a swap of what is left: %v, %v", outcome, err)
		}
		expire(9000, 7)
		if outcome, err := m.Swap(t.Context(), late); err != nil || outcome == metadata.Swapped {
			t.Errorf("the late one again: %v, %v", outcome, err)
		}
		if got := m.readAll(t, "a", 0); len(got) != 3 || got[0].GetOffset() != 7 {
			t.Errorf("%v are left", got)
		}
		m.drain()
	})
}

// TestLateTrimOfRetention: a topic is altered between a look at its retention and the decision of the trim, wherever and however late
// that is taken: nothing goes by the settings that were.
func TestLateTrimOfRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		m, other := c.start(), c.start()
		c.settle()
		was := m.create(t, "a", 1, map[string]string{"retention.ms": "3600000"})
		id := metadata.PartitionID{Topic: was.ID}
		m.fill(t, "a", 10)
		alter := func(retention string) {
			t.Helper()
			if _, err := (&topicService{other.Gateway}).AlterTopic(t.Context(), &varvev1.AlterTopicRequest{Name: "a", Set: map[string]string{"retention.ms": retention}}); err != nil {
				t.Error(err)
			}
		}
		alter("604800000")
		for _, by := range []*member{m, other} {
			if err := by.Upkeep().Trim(t.Context(), was, id, 5); !errors.Is(err, metadata.ErrConflict) {
				t.Errorf("a trim by settings that were: %v", err)
			}
		}
		now, err := m.topics.Refresh(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		// It finds the settings as they were, and then the table is slow with the commit before its own.
		sequences := m
		if m.members.winner(id) != m.ID() {
			sequences = other
		}
		slow := make(chan struct{})
		var once sync.Once
		sequences.table.set(func(op metadata.Op, key metadata.Key) error {
			if op == metadata.OpPut && strings.HasPrefix(key.Partition, "journal/") {
				once.Do(func() { close(slow) })
				time.Sleep(1500 * time.Millisecond)
			}
			return nil
		})
		appended := make(chan error)
		go func() {
			_, err := m.append("a", 0, "x")
			appended <- err
		}()
		<-slow
		trimmed := make(chan error)
		go func() { trimmed <- m.Upkeep().Trim(t.Context(), now, id, 5) }()
		synctest.Wait()
		alter("-1")
		if err := <-trimmed; !errors.Is(err, metadata.ErrConflict) {
			t.Errorf("a trim that is late: %v", err)
		}
		if err := <-appended; err != nil {
			t.Error(err)
		}
		sequences.table.clear()
		if got := m.readAll(t, "a", 0); len(got) != 11 {
			t.Errorf("%d records are left", len(got))
		}
		if now, err = m.topics.Refresh(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		for i, by := range []*member{m, other} {
			if err := by.Upkeep().Trim(t.Context(), now, id, 2+int64(i)); err != nil {
				t.Errorf("a trim by the settings that are: %v", err)
			}
		}
		if got := other.readAll(t, "a", 0); len(got) != 8 {
			t.Errorf("%d records are left", len(got))
		}
		other.drain()
		m.drain()
	})
}

// TestDueCheckpointIsTriedAgain: the checkpoint of a closed partition fails, or another one is under way, and nothing else
// happens to it: its lease row says in the end that it is closed.
func TestDueCheckpointIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		m := c.start()
		id := metadata.PartitionID{Topic: m.create(t, "a", 1, nil).ID}
		if _, err := m.append("a", 0, "x"); err != nil {
			t.Fatal(err)
		}
		failures := 0
		m.table.set(func(op metadata.Op, key metadata.Key) error {
			if op == metadata.OpPut && key == id.LeaseKey() && failures < 8 {
				failures++
				return fmt.Errorf("%w: no room", metadata.ErrTooLarge)
			}
			return nil
		})
		if _, err := m.router.decide(t.Context(), id, decision{close: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		lease, err := metadata.ReadLease(t.Context(), c.d.Table, id, metadata.Strong)
		if err != nil || !lease.View().Closed || failures < 8 {
			t.Errorf("after %d failures the lease row is %+v, %v", failures, lease, err)
		}
		m.drain()
	})
}
