package compactor

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/verify"
)

// world is a gateway with a bucket and a table, and what was appended through it.
type world struct {
	t      *testing.T
	store  segments.Store
	table  metadata.Table
	g      *gateway.Gateway
	c      *client.Client
	stop   func()
	values map[string][][]client.Record // by topic and partition
}

const smallTarget = 128 << 10 // of merged segments, in tests

func newWorld(t *testing.T) *world {
	w := &world{t: t, store: memstore.New(), table: memtable.New(), values: make(map[string][][]client.Record)}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start starts a gateway that has the table for itself.
func (w *world) start() {
	w.t.Helper()
	config := gateway.Config{Exclusive: true, FlushInterval: time.Millisecond, CycleInterval: -1, FoldRows: 8, FoldBytes: 1 << 10}
	g, err := gateway.New(config, gateway.Dependencies{Store: w.store, Table: w.table, Log: slog.New(slog.DiscardHandler), FreeMemory: func() {}})
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.Run(ctx, func() { close(started) }) }()
	select {
	case <-started:
	case err := <-ended:
		w.t.Fatal(err)
	}
	server := httptest.NewServer(g.Handler())
	w.c, err = client.New(client.Config{Servers: []string{server.URL}})
	w.must(err)
	w.g = g
	w.stop = func() {
		w.c.Close()
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("the gateway did not end well: %v", err)
		}
		server.CloseClientConnections()
		server.Close()
		w.stop = func() {}
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// fill appends small flushes to all partitions of a topic, with timestamps in no order.
func (w *world) fill(topic string, partitions, rounds int, config map[string]string) {
	w.t.Helper()
	if w.values[topic] == nil {
		_, _, err := w.c.CreateTopic(w.t.Context(), topic, client.CreateTopicOptions{Partitions: int32(partitions), Config: config})
		w.must(err)
		w.values[topic] = make([][]client.Record, partitions)
	}
	p, err := w.c.NewProducer(client.ProducerConfig{Topic: topic, Linger: client.NoLinger, Partitioning: client.PartitionAsGiven})
	w.must(err)
	defer p.Close(w.t.Context())
	random := rand.New(rand.NewPCG(uint64(len(topic)), uint64(rounds)))
	for range rounds {
		var records []client.Record
		for n := range partitions {
			for range 1 + random.IntN(3) {
				r := client.Record{Partition: int32(n), Timestamp: time.UnixMilli(random.Int64N(1_000_000)), Value: fmt.Appendf(nil, "%d/%0*d", n, 100+random.IntN(2000), random.Int())}
				records = append(records, r)
				w.values[topic][n] = append(w.values[topic][n], r)
			}
		}
		_, err := p.ProduceSync(w.t.Context(), records...)
		w.must(err)
	}
}

// compactor returns one beside the gateway, that was changed.
func (w *world) compactor(change func(*Config, *Dependencies)) *Compactor {
	w.t.Helper()
	config := Config{TargetBytes: smallTarget, BytesPerSecond: -1, LooksPerSecond: -1}
	d := Dependencies{Store: w.store, Table: w.table, Cluster: ofGateway{w.g}, Log: slog.New(slog.NewTextHandler(w.t.Output(), nil))}
	if change != nil {
		change(&config, &d)
	}
	c, err := New(config, d)
	w.must(err)
	return c
}

type ofGateway struct{ *gateway.Gateway }

func (g ofGateway) View(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	return g.MergeView(ctx, id)
}

func (g ofGateway) Topic(ctx context.Context, name string) (*metadata.Topic, error) {
	return g.Upkeep().Topics().Refresh(ctx, name)
}

func (g ofGateway) Clock() time.Time { return g.Upkeep().Clock() }

// runs has a compactor run until the function that it returns is called.
func runs(c *Compactor) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// compact makes a pass over everything.
func (w *world) compact(c *Compactor) Report {
	w.t.Helper()
	defer runs(c)()
	r, err := c.Compact(w.t.Context(), "", false)
	w.must(err)
	return r
}

// picture is all that readers can see of a topic: records, and the answers to lookups by time.
type picture struct {
	records [][]client.Record
	times   []string
}

func (w *world) look(topic string) picture {
	w.t.Helper()
	var p picture
	for n := range w.values[topic] {
		p.records = append(p.records, w.read(topic, int32(n)))
	}
	for t := int64(-1); t <= 1_010_000; t += 33_331 {
		found, err := w.c.ListOffsets(w.t.Context(), topic, client.OffsetAtOrAfter(time.UnixMilli(t)))
		w.must(err)
		p.times = append(p.times, fmt.Sprint(found))
	}
	return p
}

func (w *world) read(topic string, partition int32) []client.Record {
	w.t.Helper()
	consumer, err := w.c.NewConsumer(client.ConsumerConfig{Topic: topic, Partitions: []int32{partition}, Start: client.Earliest(), End: client.Latest()})
	w.must(err)
	var list []client.Record
	for r, err := range consumer.Records(w.t.Context()) {
		w.must(err)
		list = append(list, r)
	}
	return list
}

// check compares what is read with what was appended, and verifies bucket and table.
func (w *world) check(topic string, before picture) {
	w.t.Helper()
	after := w.look(topic)
	for n := range before.records {
		if len(after.records[n]) != len(before.records[n]) {
			w.t.Fatalf("%s/%d: %d records were read before, %d after", topic, n, len(before.records[n]), len(after.records[n]))
		}
		for i := range before.records[n] {
			if fmt.Sprint(before.records[n][i]) != fmt.Sprint(after.records[n][i]) {
				w.t.Fatalf("%s/%d: record %d was %v, is %v", topic, n, i, before.records[n][i], after.records[n][i])
			}
		}
	}
	if !slices.Equal(before.times, after.times) {
		w.t.Fatalf("%s: lookups by time differ", topic)
	}
	w.verify()
}

func (w *world) verify(tolerated ...verify.Kind) {
	w.t.Helper()
	_, err := verify.Run(w.t.Context(), verify.Config{Store: w.store, Table: w.table, Deep: true}, func(f verify.Finding) {
		if f.Kind.Break() && !slices.Contains(tolerated, f.Kind) {
			w.t.Errorf("verify: %+v", f)
		}
	})
	w.must(err)
}

// named counts the objects that the index of a topic names, and its entries.
func (w *world) named(topic string) (objects map[string]bool, entries int) {
	w.t.Helper()
	objects = make(map[string]bool)
	for n := range w.values[topic] {
		for _, e := range w.entries(topic, int32(n)) {
			if e.Length > 0 {
				objects[segments.ObjectKey(segments.ClusterID(w.g.ClusterID()), segments.GatewayID(e.Gateway), e.Number)] = true
			}
			entries++
		}
	}
	return objects, entries
}

func (w *world) id(topic string, partition int32) metadata.PartitionID {
	w.t.Helper()
	topics, err := w.g.Topics(w.t.Context())
	w.must(err)
	for _, t := range topics {
		if t.Name == topic {
			return metadata.PartitionID{Topic: t.ID, Number: partition}
		}
	}
	w.t.Fatalf("there is no topic %s", topic)
	return metadata.PartitionID{}
}

func (w *world) entries(topic string, partition int32) []metadata.Entry {
	w.t.Helper()
	view, err := w.g.MergeView(w.t.Context(), w.id(topic, partition))
	w.must(err)
	var all []metadata.Entry
	for _, s := range view.Sections() {
		list, err := s.Load(w.t.Context(), metadata.TableIndex{Table: w.table})
		w.must(err)
		all = append(all, list...)
	}
	return all
}

// TestMergeEverything: what was appended in many small flushes over many partitions is read, followed and looked up by
// time as before, from far fewer objects.
func TestMergeEverything(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 7, 150, nil)
	w.fill("b", 2, 40, map[string]string{"retention.ms": "100000000000"})
	before, beforeB := w.look("a"), w.look("b")
	objects, entries := w.named("a")
	c := w.compactor(nil)
	report := w.compact(c)
	t.Logf("%+v", report)
	if report.Merged != 9 || report.Failed != 0 || report.Moved != 0 || len(report.SetAside) != 0 || report.Bytes == 0 {
		t.Errorf("the pass came to %+v", report)
	}
	w.check("a", before)
	w.check("b", beforeB)
	now, left := w.named("a")
	t.Logf("%d objects with %d entries became %d with %d", len(objects), entries, len(now), left)
	if 5*len(now) > len(objects) || 5*left > entries {
		t.Errorf("%d objects with %d entries became %d with %d", len(objects), entries, len(now), left)
	}
	for key := range now {
		d, err := segments.ReadDirectory(t.Context(), w.store, key)
		w.must(err)
		if d.Size > 2*smallTarget {
			t.Errorf("%s has %d bytes", key, d.Size)
		}
		for _, s := range d.Spans {
			if s.Topic != d.Spans[0].Topic {
				t.Errorf("%s has records of two classes of retention", key)
			}
		}
	}
	again := w.compact(w.compactor(nil))
	for again.Merged > 0 {
		if again.Bytes >= report.Bytes {
			t.Fatalf("a second pass wrote %d bytes, the first %d", again.Bytes, report.Bytes)
		}
		report, again = again, w.compact(w.compactor(nil))
	}
	w.check("a", before)
	// What comes after a restart is merged beside what was there.
	w.stop()
	w.start()
	w.fill("a", 7, 30, nil)
	before = w.look("a")
	w.compact(w.compactor(nil))
	w.check("a", before)
}

// TestMergeUnderLoad merges while records are appended, read and followed.
func TestMergeUnderLoad(t *testing.T) {
	w := newWorld(t)
	w.fill("a", 3, 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	followed := make([][]client.Record, 3)
	for n := range followed {
		work.Go(func() {
			consumer, err := w.c.NewConsumer(client.ConsumerConfig{Topic: "a", Partitions: []int32{int32(n)}, Start: client.Earliest()})
			if err != nil {
				t.Error(err)
				return
			}
			for r, err := range consumer.Records(ctx) {
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("follower of partition %d: %v", n, err)
					}
					return
				}
				followed[n] = append(followed[n], r)
				if string(r.Value) == "end" {
					return
				}
			}
		})
	}
	merging := make(chan struct{})
	var merged atomic.Int64
	work.Go(func() {
		c := w.compactor(nil)
		defer runs(c)()
		for {
			select {
			case <-merging:
				return
			default:
			}
			r, err := c.Compact(ctx, "", false)
			if err != nil || r.Failed > 0 {
				t.Errorf("a pass came to %+v, %v", r, err)
				return
			}
			merged.Add(int64(r.Entries))
		}
	})
	w.fill("a", 3, 400, nil)
	p, err := w.c.NewProducer(client.ProducerConfig{Topic: "a", Partitioning: client.PartitionAsGiven})
	w.must(err)
	for n := range 3 {
		r := client.Record{Partition: int32(n), Timestamp: time.UnixMilli(1), Value: []byte("end")}
		_, err := p.ProduceSync(ctx, r)
		w.must(err)
		w.values["a"][n] = append(w.values["a"][n], r)
	}
	w.must(p.Close(ctx))
	close(merging)
	time.AfterFunc(20*time.Second, cancel)
	work.Wait()
	cancel()
	if merged.Load() < 100 {
		t.Errorf("only %d entries were merged meanwhile", merged.Load())
	}
	for n, list := range followed {
		if len(list) != len(w.values["a"][n]) {
			t.Fatalf("partition %d: %d records were followed, %d appended", n, len(list), len(w.values["a"][n]))
		}
		for i, r := range list {
			if r.Offset != int64(i) || string(r.Value) != string(w.values["a"][n][i].Value) {
				t.Fatalf("partition %d: record %d is %v", n, i, r)
			}
		}
	}
	w.check("a", w.look("a"))
}
