package compactor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/verify"
)

// steps counts the steps of a compactor that others can see, and kills it before or after one of them.
type steps struct {
	mu     sync.Mutex
	at     int // steps so far
	killAt int // 0: never
	late   bool
	kill   func()
	taken  []string
}

// step is one: what it does takes effect, unless the compactor was killed before.
func (s *steps) step(name string, effect func() error) error {
	s.mu.Lock()
	s.at++
	now := s.at == s.killAt
	dead := s.killAt > 0 && s.at > s.killAt
	s.taken = append(s.taken, name)
	s.mu.Unlock()
	if dead || now && !s.late {
		s.kill()
		return errKilled
	}
	err := effect()
	if now {
		s.kill()
		return errKilled
	}
	return err
}

var errKilled = fmt.Errorf("%w: killed", metadata.ErrUnavailable)

type steppedStore struct {
	segments.Store
	s *steps
}

func (x steppedStore) Put(ctx context.Context, key string, body segments.Body) error {
	return x.s.step("put segment", func() error { return x.Store.Put(context.WithoutCancel(ctx), key, body) })
}

type steppedTable struct {
	metadata.Table
	s *steps
}

func (x steppedTable) Put(ctx context.Context, row metadata.Row, c metadata.Condition) error {
	return x.s.step("put row", func() error { return x.Table.Put(context.WithoutCancel(ctx), row, c) })
}

type steppedCluster struct {
	Cluster
	s *steps
}

func (x steppedCluster) Swap(ctx context.Context, w *metadata.Swap) (outcome metadata.SwapOutcome, err error) {
	err = x.s.step("swap", func() (err error) {
		outcome, err = x.Cluster.Swap(context.WithoutCancel(ctx), w)
		return err
	})
	return outcome, err
}

// TestKilledAtEachStep kills a compactor before and after each thing that it does to bucket, table and index. What is
// read stays as it was, and another compactor does what is left.
func TestKilledAtEachStep(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 2, 150, nil)
	before := w.look("a")
	names := make(map[string]bool)
	for kill := 1; ; kill++ {
		merges := false
		for _, late := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			s := &steps{killAt: kill, late: late, kill: cancel}
			c := w.compactor(func(_ *Config, d *Dependencies) {
				d.Store, d.Table = steppedStore{d.Store, s}, steppedTable{d.Table, s}
				d.Cluster = steppedCluster{another(t, w, d.Cluster), s}
			})
			done := make(chan struct{})
			go func() {
				defer close(done)
				c.Run(ctx)
			}()
			_, err := c.Compact(ctx, "", false)
			cancel()
			<-done
			if s.at >= kill {
				merges = true
				names[s.taken[kill-1]] = true
			} else if err != nil {
				t.Fatal(err)
			}
			w.check("a", before)
		}
		if !merges {
			break
		}
		if kill%3 == 0 {
			w.fill("a", 2, 30, nil) // the next one has something to do as well
			before = w.look("a")
		}
		if kill == 12 {
			break
		}
	}
	for _, name := range []string{"put segment", "put row", "swap"} {
		if !names[name] {
			t.Errorf("no compactor was killed at %q", name)
		}
	}
	w.compact(w.compactor(func(_ *Config, d *Dependencies) { d.Cluster = another(t, w, d.Cluster) }))
	w.check("a", before)
	if objects, entries := w.named("a"); entries > 30 {
		t.Errorf("%d entries in %d objects are left", entries, len(objects))
	}
}

// another is a cluster as a compactor of a gateway of its own sees it, that the table knows.
func another(t *testing.T, w *world, c Cluster) Cluster {
	t.Helper()
	g := metadata.Gateway{ID: metadata.NewGatewayID(time.Now()), Address: "elsewhere:1", Floor: 1, MergeFloor: 1}
	_, err := metadata.RegisterGateway(t.Context(), w.table, g)
	w.must(err)
	return &elsewhere{Cluster: c, id: g.ID}
}

// elsewhere has all partitions for its own.
type elsewhere struct {
	Cluster
	id    metadata.GatewayID
	floor atomic.Uint64
}

func (e *elsewhere) ID() metadata.GatewayID           { return e.id }
func (e *elsewhere) Merges(metadata.PartitionID) bool { return true }
func (e *elsewhere) SetMergeFloor(id metadata.GatewayID, n uint64) {
	if id == e.id {
		e.floor.Store(n)
	}
}

// TestDoubledCompactors has three compactors merge the same partitions at once: each entry is replaced once, what else they
// write is garbage.
func TestDoubledCompactors(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 4, 100, nil)
	before := w.look("a")
	var work sync.WaitGroup
	var replaced, moved atomic.Int64
	for range 3 {
		cluster := another(t, w, ofGateway{w.g})
		c := w.compactor(func(_ *Config, d *Dependencies) { d.Cluster = cluster })
		work.Go(func() {
			defer runs(c)()
			for range 3 {
				r, err := c.Compact(t.Context(), "", false)
				if err != nil || r.Failed > 0 {
					t.Errorf("a pass came to %+v, %v", r, err)
				}
				replaced.Add(int64(r.Entries))
				moved.Add(int64(r.Moved))
			}
			if floor := cluster.(*elsewhere).floor.Load(); floor < 2 {
				t.Errorf("the floor is %d after all was settled", floor)
			}
		})
	}
	work.Wait()
	t.Logf("%d entries were replaced, %d had been by others", replaced.Load(), moved.Load())
	w.check("a", before)
}

// swapHook does something before each swap.
type swapHook struct {
	Cluster
	before func(*metadata.Swap)
}

func (h swapHook) Swap(ctx context.Context, w *metadata.Swap) (metadata.SwapOutcome, error) {
	h.before(w)
	return h.Cluster.Swap(ctx, w)
}

// TestIndexMovesUnderMerge: a swap that finds the index moved is tried again with the segments that are there.
func TestIndexMovesUnderMerge(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 2, 20, nil) // less than a page
	moves := 0
	c := w.compactor(func(_ *Config, d *Dependencies) {
		d.Cluster = swapHook{d.Cluster, func(*metadata.Swap) {
			if moves++; moves == 1 {
				w.fill("a", 2, 300, nil) // what was to be replaced goes into pages, and they below the lease row's
			}
		}}
	})
	r := w.compact(c)
	if moves < 3 || r.Moved > 0 || r.Failed > 0 || r.Merged != 2 {
		t.Errorf("after %d swaps the pass came to %+v", moves, r)
	}
	w.check("a", w.look("a"))
	if got := len(w.read("a", 0)); got != len(w.values["a"][0]) {
		t.Errorf("%d records are read, %d were appended", got, len(w.values["a"][0]))
	}
}

// TestTrimUnderMerge: the log start moves into, and past, what is being merged.
func TestTrimUnderMerge(t *testing.T) {
	for _, at := range []int64{1, 20, 100, 1 << 30} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			w := newWorld(t)
			w.fill("a", 2, 100, nil)
			once := sync.OnceFunc(func() {
				to := client.At(at)
				if at == 1<<30 {
					to = client.Latest()
				}
				if _, err := w.c.TrimTopic(t.Context(), "a", to, 0, 1); err != nil {
					t.Error(err)
				}
			})
			c := w.compactor(func(_ *Config, d *Dependencies) {
				d.Cluster = swapHook{d.Cluster, func(*metadata.Swap) { once() }}
			})
			w.compact(c)
			for n := range 2 {
				list := w.read("a", int32(n))
				from := min(int(at), len(w.values["a"][n]))
				if len(list) != len(w.values["a"][n])-from {
					t.Fatalf("partition %d: %d records are read of %d from %d on", n, len(list), len(w.values["a"][n]), from)
				}
				for i, r := range list {
					if string(r.Value) != string(w.values["a"][n][from+i].Value) {
						t.Fatalf("partition %d: record %d is %s", n, i, r.Value)
					}
				}
			}
			w.verify()
			before := w.look("a")
			w.compact(w.compactor(func(_ *Config, d *Dependencies) { d.Cluster = another(t, w, d.Cluster) }))
			w.check("a", before)
		})
	}
}

// TestTopicDeletedUnderMerge: nothing comes back, and the others are merged.
func TestTopicDeletedUnderMerge(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 2, 50, nil)
	w.fill("b", 2, 50, nil)
	before := w.look("b")
	once := sync.OnceFunc(func() { w.must(w.c.DeleteTopic(t.Context(), "a", false)) })
	c := w.compactor(func(_ *Config, d *Dependencies) {
		d.Cluster = swapHook{d.Cluster, func(*metadata.Swap) { once() }}
	})
	if r := w.compact(c); r.Failed > 0 {
		t.Errorf("the pass came to %+v", r)
	}
	w.check("b", before)
	if _, entries := w.named("b"); entries > 30 {
		t.Errorf("%d entries of the other topic are left", entries)
	}
	if r := w.compact(w.compactor(func(_ *Config, d *Dependencies) { d.Cluster = another(t, w, d.Cluster) })); r.Partitions != 2 {
		t.Errorf("the next pass came to %+v", r)
	}
}

// TestRetentionChangedUnderMerge: what is merged then is of the class that it was of; the next merge knows better.
func TestRetentionChangedUnderMerge(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 2, 50, nil)
	w.fill("b", 2, 50, nil)
	once := sync.OnceFunc(func() {
		_, err := w.c.AlterTopic(t.Context(), "a", client.AlterTopicOptions{Set: map[string]string{"retention.ms": "864000000000"}})
		w.must(err)
	})
	c := w.compactor(func(_ *Config, d *Dependencies) {
		d.Cluster = swapHook{d.Cluster, func(*metadata.Swap) { once() }}
	})
	w.compact(c)
	w.fill("a", 2, 20, nil)
	w.fill("b", 2, 20, nil)
	before, beforeB := w.look("a"), w.look("b")
	seen, _ := w.named("a")
	w.compact(w.compactor(func(_ *Config, d *Dependencies) { d.Cluster = another(t, w, d.Cluster) }))
	w.check("a", before)
	w.check("b", beforeB)
	now, _ := w.named("a")
	others, _ := w.named("b")
	for key := range now {
		if !seen[key] && others[key] {
			t.Errorf("%s was made of both classes", key)
		}
	}
}

// TestDamagedSegments: what is damaged or missing is named and stays; the rest is merged.
func TestDamagedSegments(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 3, 60, nil)
	cluster := w.g.ClusterID()
	key := func(e metadata.Entry) string {
		return segments.ObjectKey(segments.ClusterID(cluster), segments.GatewayID(e.Gateway), e.Number)
	}
	list := w.entries("a", 1)
	flipped, gone, short := list[10], list[20], list[30]
	spans := 0 // in the object that goes
	for n := range 3 {
		for _, e := range w.entries("a", int32(n)) {
			if key(e) == key(gone) {
				spans++
			}
		}
	}
	w.change(key(flipped), func(data []byte) []byte { data[flipped.Position+flipped.Length-1] ^= 1; return data })
	w.must(w.store.Delete(t.Context(), key(gone)))
	w.change(key(short), func(data []byte) []byte { return data[:short.Position+short.Length/2] })
	c := w.compactor(nil)
	r := w.compact(c)
	damaged := make(map[string]int)
	for _, a := range r.SetAside {
		if a.Topic != "a" || a.Problem == "" {
			t.Errorf("set aside: %+v", a)
		}
		damaged[a.Object]++
	}
	if len(damaged) != 3 || damaged[key(flipped)] != 1 || damaged[key(gone)] != spans || damaged[key(short)] < 1 {
		t.Errorf("set aside were spans of %v, of which %s is gone", damaged, key(gone))
	}
	if r.Failed > 0 || r.Merged != 3 {
		t.Errorf("the pass came to %+v", r)
	}
	named, entries := w.named("a")
	for _, e := range []metadata.Entry{flipped, gone, short} {
		if !named[key(e)] {
			t.Errorf("the index lost the damaged %s", key(e))
		}
	}
	if entries > 40 {
		t.Errorf("%d entries are left in %d objects", entries, len(named))
	}
	// Before and behind the damage all is read as it was; where it is, readers are told, once it is not in memory.
	w.stop()
	w.start()
	for _, e := range list {
		if err := w.readOne("a", 1, e.First); (err != nil) != (e.First == flipped.First || e.First == gone.First || e.First == short.First) {
			t.Errorf("offset %d: %v", e.First, err)
		}
	}
	w.verify(verify.ObjectMissing, verify.ObjectCorrupt, verify.BatchCorrupt)
}

// TestDamageIsTold: each pass that somebody asks for names each damaged span once, and takes what is whole again; the others do not read
// it again and again.
func TestDamageIsTold(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 1, 30, nil)
	before := w.look("a")
	const gone = 3
	var keys []string
	var objects [][]byte
	for _, e := range w.entries("a", 0)[10 : 10+gone] {
		key := segments.ObjectKey(segments.ClusterID(w.g.ClusterID()), segments.GatewayID(e.Gateway), e.Number)
		data, _, err := w.store.Get(t.Context(), key, 0, -1)
		w.must(err)
		keys, objects = append(keys, key), append(objects, data)
		w.must(w.store.Delete(t.Context(), key))
	}
	c := w.compactor(nil)
	defer runs(c)()
	for pass := range 3 {
		r, err := c.Compact(t.Context(), "", false)
		w.must(err)
		if len(r.SetAside) != gone || r.Failed > 0 || pass > 0 && r.Bytes > 0 {
			t.Errorf("pass %d: %+v", pass, r)
		}
	}
	for i, key := range keys {
		w.must(w.store.Put(t.Context(), key, segments.NewBody(objects[i])))
	}
	if r, err := c.Compact(t.Context(), "", false); err != nil || len(r.SetAside) > 0 || r.Bytes == 0 {
		t.Errorf("what is whole again: %+v, %v", r, err)
	}
	w.check("a", before)
}

// TestBesideDamage: processes that begin anew meet a damaged span, and write nothing again of what lies beside it.
func TestBesideDamage(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 2, 40, nil)
	const damaged = 2
	for n := range damaged { // three pieces, none of them most of it
		e := w.entries("a", 0)[13*(n+1)]
		w.change(segments.ObjectKey(segments.ClusterID(w.g.ClusterID()), segments.GatewayID(e.Gateway), e.Number), func(data []byte) []byte {
			data[e.Position+e.Length-1] ^= 1
			return data
		})
	}
	large := func(c *Config, d *Dependencies) { // it all fits one
		c.TargetBytes = 1 << 20
		d.Cluster = another(t, w, d.Cluster)
	}
	first := w.compact(w.compactor(large))
	if first.Bytes == 0 || len(first.SetAside) != damaged {
		t.Fatalf("%+v", first)
	}
	entries := fmt.Sprint(w.entries("a", 0))
	for n := range 3 {
		r := w.compact(w.compactor(large))
		if r.Bytes > 0 || r.Entries > 0 || len(r.SetAside) != damaged {
			t.Errorf("process %d: %+v", n, r)
		}
	}
	if now := fmt.Sprint(w.entries("a", 0)); now != entries {
		t.Errorf("%s became %s", entries, now)
	}
}

func (w *world) change(key string, change func([]byte) []byte) {
	w.t.Helper()
	data, _, err := w.store.Get(w.t.Context(), key, 0, -1)
	w.must(err)
	w.must(w.store.Delete(w.t.Context(), key))
	w.must(w.store.Put(w.t.Context(), key, segments.NewBody(change(data))))
}

// readOne reads the record at an offset.
func (w *world) readOne(topic string, partition int32, offset int64) error {
	consumer, err := w.c.NewConsumer(client.ConsumerConfig{Topic: topic, Partitions: []int32{partition}, Start: client.At(offset), End: client.At(offset + 1), MaxBytes: 1})
	w.must(err)
	for r, err := range consumer.Records(w.t.Context()) {
		if err != nil {
			return err
		}
		if string(r.Value) != string(w.values[topic][partition][offset].Value) {
			return errors.New("another record")
		}
	}
	return nil
}

// TestDryRun says what a pass would do, and does nothing.
func TestDryRun(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 2, 50, nil)
	c := w.compactor(func(_ *Config, d *Dependencies) {
		d.Store = steppedStore{d.Store, &steps{killAt: 1, kill: func() { t.Error("something was written") }}}
	})
	defer runs(c)()
	r, err := c.Compact(t.Context(), "a", true)
	w.must(err)
	if r.Merged != 2 || r.Segments == 0 || r.Entries < 50 {
		t.Errorf("it would come to %+v", r)
	}
	if _, err := c.Compact(t.Context(), "b", true); !errors.Is(err, metadata.ErrTopicNotFound) || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("a topic that is not there: %v", err)
	}
}

// readHook does something before each read of the bucket.
type readHook struct {
	segments.Store
	before func()
}

func (h readHook) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	h.before()
	return h.Store.Get(ctx, key, offset, length)
}

// TestCollectedUnderMerge: objects that go because nothing names them any more are no damage.
func TestCollectedUnderMerge(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 2, 30, nil)
	objects, _ := w.named("a")
	once := sync.OnceFunc(func() {
		if _, err := w.c.TrimTopic(t.Context(), "a", client.Latest(), 0, 1); err != nil {
			t.Error(err)
		}
		for key := range objects {
			if err := w.store.Delete(t.Context(), key); err != nil {
				t.Error(err)
			}
		}
	})
	c := w.compactor(func(_ *Config, d *Dependencies) { d.Store = readHook{d.Store, once} })
	if r := w.compact(c); len(r.SetAside) > 0 || r.Failed > 0 || r.Moved == 0 {
		t.Errorf("the pass came to %+v", r)
	}
	w.verify()
}

// TestStoppedInAPass: whoever asked for a pass that its process does not finish, since it ends, is told to ask again; not of an error inside.
func TestStoppedInAPass(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 2, 50, nil)
	ctx, stop := context.WithCancelCause(t.Context())
	c := w.compactor(func(_ *Config, d *Dependencies) {
		d.Store = steppedStore{d.Store, &steps{killAt: 1, kill: func() { stop(errors.New("interrupted")) }}}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	for _, when := range []string{"in it", "before it"} {
		if _, err := c.Compact(t.Context(), "a", false); !errors.Is(err, metadata.ErrBusy) {
			t.Errorf("it ends %s: %v", when, err)
		}
	}
	<-done
}
