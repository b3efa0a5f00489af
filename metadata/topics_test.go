package metadata_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/metadata/tabletest"
)

var now = time.UnixMilli(1_700_000_000_000)

func TestTopicLife(t *testing.T) {
	ctx, table := t.Context(), memtable.New()
	topics := metadata.NewTopics(table)
	if _, err := topics.Get(ctx, "a"); !errors.Is(err, metadata.ErrTopicNotFound) {
		t.Fatalf("get: %v", err)
	}
	made, err := topics.Create(ctx, "a", 3, map[string]string{"message.timestamp.type": "LogAppendTime"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if !made.Config.AppendTime || made.Set["timestamp.type"] != "append" || made.CreatedAt != now.UnixMilli() || made.State != metadata.TopicActive {
		t.Fatalf("%+v", made)
	}
	if _, err := topics.Create(ctx, "a", 3, nil, now); !errors.Is(err, metadata.ErrTopicExists) {
		t.Fatalf("create twice: %v", err)
	}
	altered, err := topics.Alter(ctx, "a", 5, map[string]string{"retention.ms": "60000"}, []string{"message.timestamp.type"})
	if err != nil || altered.Partitions != 5 || altered.Config.AppendTime || altered.Config.RetentionMillis != 60000 || altered.ID != made.ID {
		t.Fatalf("%+v %v", altered, err)
	}
	if same, err := topics.Alter(ctx, "a", 0, nil, []string{"timestamp.type"}); err != nil || same.Stamp != altered.Stamp {
		t.Fatalf("nothing to change: %+v %v", same, err)
	}
	if _, err := topics.Alter(ctx, "a", 4, nil, nil); !errors.Is(err, metadata.ErrInvalid) {
		t.Fatalf("fewer partitions: %v", err)
	}
	if err := topics.Remove(ctx, altered); !errors.Is(err, metadata.ErrInvalid) {
		t.Fatalf("remove what is not marked: %v", err)
	}
	marked, err := topics.MarkDeleting(ctx, "a")
	if err != nil || marked.State != metadata.TopicDeleting {
		t.Fatalf("%+v %v", marked, err)
	}
	if got, err := topics.Get(ctx, "a"); err != nil || got.State != metadata.TopicDeleting {
		t.Fatalf("%+v %v", got, err)
	}
	if _, err := topics.Create(ctx, "a", 1, nil, now); !errors.Is(err, metadata.ErrTopicExists) || !strings.Contains(err.Error(), "being deleted") {
		t.Fatalf("create while it is deleted: %v", err)
	}
	for range 2 {
		if err := topics.Remove(ctx, marked); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := topics.Get(ctx, "a"); !errors.Is(err, metadata.ErrTopicNotFound) {
		t.Fatalf("get after removal: %v", err)
	}
	if list, err := topics.List(ctx, "", "", 0); err != nil || len(list) != 0 {
		t.Fatalf("%v %v", list, err)
	}
	again, err := topics.Create(ctx, "a", 1, nil, now)
	if err != nil || again.ID == made.ID || again.Stamp.Compare(marked.Stamp) <= 0 {
		t.Fatalf("%+v %v", again, err)
	}
	if err := topics.Remove(ctx, marked); err != nil { // of the one before: not of this one
		t.Fatal(err)
	}
	if got, err := metadata.NewTopics(table).Get(ctx, "a"); err != nil || got.ID != again.ID {
		t.Fatalf("%+v %v", got, err)
	}
}

func TestTopicFaultsAreListed(t *testing.T) {
	ctx, table := t.Context(), memtable.New()
	topics := metadata.NewTopics(table)
	_, err := topics.Create(ctx, "bad/name", 0, map[string]string{"retention.ms": "soon", "color": "red", "max.message.bytes": "9000000",
		"timestamp.type": "create", "message.timestamp.type": "append"}, now)
	if !errors.Is(err, metadata.ErrInvalid) {
		t.Fatal(err)
	}
	for _, part := range []string{"bad/name", "not 0", `retention.ms: "soon"`, `"color" is not a setting`, "cleanup.policy, delete.retention.ms, max.message.bytes", "is above 8388608", "differ"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	if _, err := topics.Alter(ctx, "a", 0, map[string]string{"retention.ms": "5"}, []string{"retention.ms", "color"}); !errors.Is(err, metadata.ErrInvalid) ||
		!strings.Contains(err.Error(), "set and unset") || !strings.Contains(err.Error(), "color") {
		t.Errorf("%v", err)
	}
	if rows, _ := table.Range(ctx, metadata.Range{Partition: "topics"}); len(rows) != 0 {
		t.Errorf("bad input left %v", rows)
	}
}

func TestConfig(t *testing.T) {
	set := map[string]string{"cleanup.policy": "delete,compact", "max.message.bytes": "2048", "retention.bytes": "7", "retention.ms": "8",
		"timestamp.after.max.ms": "9", "timestamp.type": "append", "delete.retention.ms": "10", "min.compaction.lag.ms": "11", "min.cleanable.dirty.ratio": "0.25"}
	got, err := metadata.ParseConfig(set)
	want := metadata.Config{RetentionMillis: 8, RetentionBytes: 7, Cleanup: metadata.CleanupBoth, AppendTime: true, MaxMessageBytes: 2048, FutureMaxMillis: 9,
		DeleteRetentionMillis: 10, CompactionLagMillis: 11, DirtyRatio: 0.25}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	back := map[string]string{}
	for _, e := range got.Entries() {
		if e.IsDefault || e.Doc == "" {
			t.Errorf("%+v", e)
		}
		back[e.Name] = e.Value
	}
	if again, err := metadata.ParseConfig(back); err != nil || again != want {
		t.Errorf("%+v %v", again, err)
	}
	for _, e := range metadata.DefaultConfig().Entries() {
		if !e.IsDefault {
			t.Errorf("%+v", e)
		}
	}
	for name, bad := range map[string]string{"retention.ms": "-2", "retention.bytes": "1.5", "max.message.bytes": "0", "timestamp.after.max.ms": "-1",
		"timestamp.type": "now", "cleanup.policy": "", "delete.retention.ms": "-1", "min.compaction.lag.ms": "1h", "min.cleanable.dirty.ratio": "NaN"} {
		if _, err := metadata.ParseConfig(map[string]string{name: bad}); !errors.Is(err, metadata.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, bad, err)
		}
	}
}

func TestTopicList(t *testing.T) {
	ctx := t.Context()
	topics := metadata.NewTopics(memtable.New())
	for _, name := range []string{"b1", "a", "b2", "b", "c", "b3"} {
		if _, err := topics.Create(ctx, name, 1, nil, now); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		prefix, after string
		limit         int
		want          string
	}{
		{"", "", 0, "a b b1 b2 b3 c"}, {"b", "", 0, "b b1 b2 b3"}, {"b", "b1", 0, "b2 b3"}, {"b", "", 2, "b b1"},
		{"", "b3", 9, "c"}, {"b", "c", 0, ""}, {"c", "a", 0, "c"}, {"x", "", 0, ""},
	} {
		list, err := topics.List(ctx, c.prefix, c.after, c.limit)
		var names []string
		for _, topic := range list {
			names = append(names, topic.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != c.want {
			t.Errorf("%+v: %q %v", c, got, err)
		}
	}
	for _, bad := range [][2]string{{"a/", ""}, {"", "\xff"}} {
		if _, err := topics.List(ctx, bad[0], bad[1], 0); !errors.Is(err, metadata.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestTopicCache: reads are shared, few, and never take a gateway's own changes back.
func TestTopicCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, inner := t.Context(), memtable.New()
		faulty := tabletest.NewFaulty(inner, func(c tabletest.Call) tabletest.Fault {
			return tabletest.Fault{Kind: tabletest.Stale} // eventual reads lag as far as they can
		})
		mine, other := metadata.NewTopics(faulty), metadata.NewTopics(faulty)
		if _, err := mine.Create(ctx, "a", 1, nil, now); err != nil {
			t.Fatal(err)
		}
		if got, err := other.Get(ctx, "a"); err != nil || got.Partitions != 1 { // strong after an eventual read found nothing
			t.Fatalf("%+v %v", got, err)
		}
		for n := int32(2); n < 30; n++ {
			if _, err := mine.Alter(ctx, "a", n, nil, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(4 * time.Second) // so that it is read again, and read stale
			if got, err := mine.Get(ctx, "a"); err != nil || got.Partitions != n {
				t.Fatalf("%+v %v, want %d partitions", got, err, n)
			}
		}
		if got, err := other.Refresh(ctx, "a"); err != nil || got.Partitions != 29 {
			t.Fatalf("%+v %v", got, err)
		}
		faulty.SetPlan(func(c tabletest.Call) tabletest.Fault {
			return tabletest.Fault{Kind: tabletest.Slow, Delay: 100 * time.Millisecond}
		})
		calls := faulty.Calls()
		time.Sleep(4 * time.Second)
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if got, err := other.Get(ctx, "a"); err != nil || got.Partitions != 29 {
					t.Errorf("%+v %v", got, err)
				}
			})
		}
		all.Wait()
		for range 10 {
			if _, err := other.Get(ctx, "a"); err != nil {
				t.Error(err)
			}
		}
		if n := faulty.Calls() - calls; n != 1 {
			t.Errorf("%d reads, want one", n)
		}
	})
}

// TestTopicOutage: what is known stays known while the table is out, and callers wait
// for little or nothing.
func TestTopicOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		faulty := tabletest.NewFaulty(memtable.New(), nil)
		topics := metadata.NewTopics(metadata.Retry(faulty, nil))
		if _, err := topics.Create(ctx, "a", 1, nil, now); err != nil {
			t.Fatal(err)
		}
		faulty.SetPlan(func(tabletest.Call) tabletest.Fault { return tabletest.Fault{Kind: tabletest.Unavailable} })
		for range 5 {
			time.Sleep(4 * time.Second)
			began := time.Now()
			for range 100 {
				if _, err := topics.Get(ctx, "a"); err != nil {
					t.Fatal(err)
				}
			}
			if waited := time.Since(began); waited > 300*time.Millisecond {
				t.Errorf("waited %s", waited)
			}
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := topics.Get(short, "b"); err == nil || errors.Is(err, metadata.ErrTopicNotFound) {
			t.Errorf("an unknown topic while the table is out: %v", err)
		}
		time.Sleep(time.Minute) // the shared read of it ends
	})
}

// TestCreateRaces: one of many makes the topic, whatever the table does, and a
// create that was held back cannot bring it back later.
func TestCreateRaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		faulty := tabletest.NewFaulty(memtable.New(), tabletest.RandomPlan(3, map[tabletest.FaultKind]float64{
			tabletest.LostAnswer: 0.2, tabletest.Vanished: 0.1, tabletest.Slow: 0.3}))
		late := 0
		for round := range 30 {
			var mu sync.Mutex
			made := map[metadata.TopicID]int{}
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					topics := metadata.NewTopics(metadata.Retry(faulty, nil))
					topic, err := topics.Create(ctx, "a", 1, nil, now)
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						made[topic.ID]++
					} else if !errors.Is(err, metadata.ErrTopicExists) {
						t.Errorf("round %d: %v", round, err)
					}
				})
			}
			all.Wait()
			if len(made) != 1 {
				t.Fatalf("round %d: %v made", round, made)
			}
			topics := metadata.NewTopics(metadata.Retry(faulty, nil))
			marked, err := topics.MarkDeleting(ctx, "a")
			if err != nil {
				t.Fatal(err)
			}
			if err := topics.Remove(ctx, marked); err != nil {
				t.Fatal(err)
			}
			late += faulty.Release()
			if _, err := topics.Refresh(ctx, "a"); !errors.Is(err, metadata.ErrTopicNotFound) {
				t.Fatalf("round %d: came back: %v", round, err)
			}
			faulty.SetPlan(tabletest.RandomPlan(uint64(round), map[tabletest.FaultKind]float64{
				tabletest.LostAnswer: 0.2, tabletest.Late: 0.2, tabletest.Slow: 0.3}))
		}
		if late == 0 {
			t.Error("no write came late")
		}
	})
}

func TestCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		faulty := tabletest.NewFaulty(memtable.New(), tabletest.RandomPlan(5, map[tabletest.FaultKind]float64{
			tabletest.LostAnswer: 0.2, tabletest.Late: 0.2, tabletest.Slow: 0.3}))
		table := metadata.Retry(faulty, nil)
		var mu sync.Mutex
		ids, producers, generations := map[string]bool{}, map[int64]bool{}, map[uint64]bool{}
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				c, err := metadata.OpenCluster(ctx, table)
				if err != nil {
					t.Error(err)
					return
				}
				count := int64(i%3 + 1)
				first, err := c.AllocateProducers(ctx, count)
				if err != nil {
					t.Error(err)
				}
				generation, err := c.RaiseGeneration(ctx)
				if err != nil {
					t.Error(err)
				}
				if now, err := c.Generation(ctx); err != nil || now < generation {
					t.Errorf("generation %d after %d: %v", now, generation, err)
				}
				mu.Lock() // held over no call: waiting for it is not idle in a bubble
				defer mu.Unlock()
				ids[c.ID] = true
				for id := first; id < first+count; id++ {
					if producers[id] || id < 1000 {
						t.Errorf("producer id %d", id)
					}
					producers[id] = true
				}
				if generations[generation] {
					t.Errorf("generation %d twice", generation)
				}
				generations[generation] = true
			})
		}
		all.Wait()
		if len(ids) != 1 {
			t.Errorf("%d clusters", len(ids))
		}
		c, err := metadata.OpenCluster(ctx, table)
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range []int64{0, -1, metadata.MaxProducerBlock + 1} {
			if _, err := c.AllocateProducers(ctx, bad); !errors.Is(err, metadata.ErrInvalid) {
				t.Errorf("%d ids: %v", bad, err)
			}
		}
	})
}

func TestGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		faulty := tabletest.NewFaulty(memtable.New(), tabletest.RandomPlan(9, map[tabletest.FaultKind]float64{
			tabletest.LostAnswer: 0.2, tabletest.Vanished: 0.1, tabletest.Late: 0.2}))
		table := metadata.Retry(faulty, nil)
		for round := range 20 {
			id := metadata.GatewayID(fmt.Sprintf("g%02d", round))
			g, err := metadata.RegisterGateway(ctx, table, metadata.Gateway{ID: id, Address: "127.0.0.1:1", Peer: "127.0.0.1:2", Protocol: 3})
			if err != nil {
				t.Fatal(err)
			}
			for beat := uint64(2); beat < 10; beat++ {
				g.Floor, g.Partitions, g.Buffered = beat, beat+1, beat+2
				if err := g.Write(ctx, table); err != nil || g.Beat < beat {
					t.Fatalf("beat %d: %+v %v", beat, g, err)
				}
			}
			began := time.Now().UnixMilli()
			if err := metadata.MarkSealed(ctx, table, id, time.Now()); err != nil {
				t.Fatal(err)
			}
			if err := g.Write(ctx, table); !errors.Is(err, metadata.ErrFenced) || g.State != metadata.GatewaySealed {
				t.Fatalf("write after the seal: %+v %v", g, err)
			}
			sealed := g.SealedAt
			if sealed < began || sealed > time.Now().UnixMilli() {
				t.Fatalf("sealed at %d, it was %d", sealed, began)
			}
			time.Sleep(time.Second)
			if err := metadata.MarkSealed(ctx, table, id, time.Now()); err != nil { // once is enough
				t.Fatal(err)
			}
			g.Floor = 99 // its numbers are settled under its old id
			if err := g.Write(ctx, table); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := metadata.MarkClosed(ctx, table, id); err != nil {
					t.Fatal(err)
				}
			}
			if err := metadata.MarkSealed(ctx, table, id, time.Now()); err != nil { // closed stays closed
				t.Fatal(err)
			}
			if err := g.Write(ctx, table); !errors.Is(err, metadata.ErrFenced) || g.State != metadata.GatewayClosed || g.SealedAt != sealed {
				t.Fatalf("write after closing: %+v %v", g, err)
			}
			faulty.Release()
		}
		list, err := metadata.ListGateways(ctx, table, metadata.Strong, nil)
		if err != nil || len(list) != 20 || list[7].ID != "g07" || list[7].State != metadata.GatewayClosed || list[7].Floor != 99 {
			t.Fatalf("%v %+v", err, list)
		}
		if g := list[7]; g.Peer != "127.0.0.1:2" || g.Protocol != 3 || g.Partitions != 10 || g.Buffered != 11 || g.SealedAt == 0 {
			t.Errorf("%+v", g)
		}
		if err := metadata.MarkSealed(ctx, table, "nobody", time.Now()); !errors.Is(err, metadata.ErrNotFound) {
			t.Errorf("mark nobody: %v", err)
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		g := list[0]
		g.State = metadata.GatewayLive
		if err := g.Write(ended, table); err == nil || errors.Is(err, metadata.ErrFenced) {
			t.Errorf("write after the context ended: %v", err)
		}
	})
}

// TestCreateFindsItself: a create whose answer was lost, of a topic that somebody has
// altered since, is no "exists already".
func TestCreateFindsItself(t *testing.T) {
	ctx, inner := t.Context(), memtable.New()
	other, altered := metadata.NewTopics(inner), false
	faulty := tabletest.NewFaulty(inner, func(c tabletest.Call) tabletest.Fault {
		if c.Op == metadata.OpPut && !altered {
			return tabletest.Fault{Kind: tabletest.LostAnswer}
		}
		if rows, _ := inner.Range(ctx, metadata.Range{Partition: "topics"}); len(rows) == 1 && !altered {
			altered = true
			if _, err := other.Alter(ctx, "a", 9, nil, nil); err != nil {
				t.Error(err)
			}
		}
		return tabletest.Fault{}
	})
	got, err := metadata.NewTopics(faulty).Create(ctx, "a", 3, nil, now)
	if err != nil || got.Partitions != 9 || !altered {
		t.Fatalf("%+v %v", got, err)
	}
}

// TestBeatFindsItself: a beat that its owner gave up on, and that landed, does not
// look like somebody else's mark.
func TestBeatFindsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		faulty := tabletest.NewFaulty(memtable.New(), nil)
		g, err := metadata.RegisterGateway(t.Context(), faulty, metadata.Gateway{ID: "g1"})
		if err != nil {
			t.Fatal(err)
		}
		faulty.SetPlan(func(c tabletest.Call) tabletest.Fault { return tabletest.Fault{Kind: tabletest.LostAnswer} })
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Write(short, faulty); !errors.Is(err, metadata.ErrUnknown) || g.Beat != 1 {
			t.Fatalf("%+v %v", g, err)
		}
		faulty.SetPlan(nil)
		calls := faulty.Calls()
		if err := g.Write(t.Context(), faulty); err != nil || g.Beat != 3 || faulty.Calls() > calls+6 {
			t.Fatalf("%+v %v after %d calls", g, err, faulty.Calls()-calls)
		}
		for _, state := range []metadata.GatewayState{metadata.GatewayDraining, metadata.GatewayClosed} {
			g.State = state
			if err := g.Write(t.Context(), faulty); err != nil {
				t.Fatal(err)
			}
		}
	})
}
