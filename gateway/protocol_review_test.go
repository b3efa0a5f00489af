package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/faultfs"
)

// Interleavings that a review of the protocols found.

// foreignStore puts, before a gateway's own object, the one that recovery of its buffer elsewhere makes.
type foreignStore struct {
	segments.Store
	t  *testing.T
	on atomic.Bool
}

func (s *foreignStore) Put(ctx context.Context, key string, body segments.Body) error {
	object, ok := body.(*segments.Object)
	if !ok || !s.on.Load() {
		return s.Store.Put(ctx, key, body)
	}
	d := object.Directory
	b := segments.NewBuilder(d.Cluster, d.Gateway, d.Number)
	for _, span := range d.Spans {
		for _, info := range span.Batches {
			data := make([]byte, info.Size)
			if _, err := object.ReadAt(data, info.Position); err != nil && err != io.EOF {
				s.t.Error(err)
			}
			if info.Ack == segments.AckBuffered {
				if err := b.Add(span.SpanID, data, info); err != nil {
					s.t.Error(err)
				}
			}
		}
	}
	if b.Batches() > 0 && s.on.CompareAndSwap(true, false) {
		recovered, err := b.Build(func(segments.SpanID) uint64 { return 0 })
		if err != nil {
			s.t.Error(err)
		}
		if err := s.Store.Put(ctx, key, recovered); err != nil {
			s.t.Error(err)
		}
	}
	return s.Store.Put(ctx, key, body)
}

// TestForeignObject has another object lie under the name of a segment, with only some of its batches: each
// append is told of its own batch, or that nobody knows; nobody waits for ever, and the log goes on.
func TestForeignObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory()
		store := &foreignStore{Store: d.Store, t: t}
		d.Store = store
		d.Buffers = openBuffers(t, faultfs.New())
		g := runGateway(t, Config{Exclusive: true, FlushInterval: 300 * time.Millisecond}, d)
		g.create(t, "a", 2, nil)
		send := func(partition int32, value string, acks varvev1.Acks) (int64, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			out, err := g.log.Produce(ctx, &varvev1.ProduceRequest{Topic: "a", Partition: &partition, Acks: acks, Records: []*varvev1.Record{{Value: []byte(value)}}})
			if err != nil {
				return -1, err
			}
			return out.GetResults()[0].GetBaseOffset(), nil
		}
		if _, err := send(1, "first", varvev1.Acks_ACKS_COMMITTED); err != nil { // so that the next ones share a segment
			t.Fatal(err)
		}
		store.on.Store(true)
		var sent sync.WaitGroup
		check := func(partition int32, value string, acks varvev1.Acks, known bool) {
			sent.Go(func() {
				at, err := send(partition, value, acks)
				if known != (err == nil) || err != nil && !classify(err).info.GetUnknownOutcome() {
					t.Errorf("%s: offset %d, %v", value, at, err)
				}
			})
			time.Sleep(20 * time.Millisecond)
		}
		check(0, "committed", varvev1.Acks_ACKS_COMMITTED, false)
		check(0, "buffered", varvev1.Acks_ACKS_BUFFERED, true)
		check(1, "elsewhere", varvev1.Acks_ACKS_COMMITTED, false)
		sent.Wait()
		for p := range int32(2) {
			if at, err := send(p, "after", varvev1.Acks_ACKS_COMMITTED); err != nil || at != 1 {
				t.Errorf("partition %d goes on at %d, %v", p, at, err)
			}
		}
		if got := g.readAll(t, "a", 0); len(got) != 2 || string(got[0].GetValue()) != "buffered" {
			t.Errorf("%v", got)
		}
		if n := g.tenure.Load().intake.outstanding.Load(); n != 0 {
			t.Errorf("%d bytes are never released", n)
		}
		g.leave()
		if err := <-g.ended; err != nil {
			t.Error(err)
		}
	})
}

// TestStoredDirectory reads back what a segment says about itself: what was put is known as one's own.
func TestStoredDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory()
		d.Store = &echoStore{d.Store}
		var lines strings.Builder
		d.Log = slog.New(slog.NewTextHandler(&lines, nil))
		g := runGateway(t, Config{Exclusive: true}, d)
		g.create(t, "a", 3, nil)
		for n := range 30 {
			if err := appendOne(t.Context(), g.testGateway, int32(n%3), varvev1.Acks_ACKS_COMMITTED); err != nil {
				t.Fatal(err)
			}
		}
		g.leave()
		if err := <-g.ended; err != nil {
			t.Error(err)
		}
		if strings.Contains(lines.String(), "another object") {
			t.Error(lines.String())
		}
	})
}

// echoStore answers each put with the "no" of its own first try.
type echoStore struct{ segments.Store }

func (s *echoStore) Put(ctx context.Context, key string, body segments.Body) error {
	if err := s.Store.Put(ctx, key, body); err != nil {
		return err
	}
	return s.Store.Put(ctx, key, body)
}

// doubtTable has puts of journal rows take effect, and tells nobody.
type doubtTable struct {
	metadata.Table
	on atomic.Bool
}

func (d *doubtTable) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	err := d.Table.Put(ctx, row, cond)
	if d.on.Load() && strings.HasPrefix(row.Partition, "journal/") {
		return metadata.ErrUnknown
	}
	return err
}

func (d *doubtTable) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	if d.on.Load() {
		return metadata.Row{}, metadata.ErrUnavailable
	}
	return d.Table.Get(ctx, key, c)
}

// TestFenceWhileStopping stops a gateway while it is not known whether a fencing token was set: that it
// stops is not told as a "no".
func TestFenceWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory()
		table := &doubtTable{Table: d.Table}
		d.Table = table
		g := runGateway(t, Config{Exclusive: true, DrainTime: time.Second}, d)
		topic := g.create(t, "a", 1, nil)
		if err := appendOne(t.Context(), g.testGateway, 0, varvev1.Acks_ACKS_COMMITTED); err != nil {
			t.Fatal(err)
		}
		table.on.Store(true)
		told := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_, err := g.log.Fence(ctx, &varvev1.FenceRequest{Topic: "a", Token: "mine", CurrentToken: new(string)})
			told <- err
		}()
		time.Sleep(100 * time.Millisecond)
		g.leave()
		<-g.ended
		if err := <-told; err == nil || !classify(err).info.GetUnknownOutcome() {
			t.Errorf("told: %v", err)
		}
		table.on.Store(false)
		if v, err := metadata.ReadView(t.Context(), d.Table, metadata.PartitionID{Topic: topic.ID}); err != nil || v.Fence != "mine" {
			t.Errorf("the token is %q, %v", v.Fence, err)
		}
	})
}

// slowTable takes five milliseconds for each call, and counts puts of journal rows.
func (c *testCluster) slow(m *member) (commits *atomic.Int64) {
	commits = new(atomic.Int64)
	m.table.set(func(op metadata.Op, key metadata.Key) error {
		time.Sleep(5 * time.Millisecond)
		if op == metadata.OpPut && strings.HasPrefix(key.Partition, "journal/") {
			commits.Add(1)
		}
		return nil
	})
	return commits
}

// ask reads at a member, linearizable, all the time until the returned function is called.
func (m *member) ask(topic string, partitions int32) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var asking sync.WaitGroup
	for i := range int32(4) {
		asking.Go(func() {
			for n := i; ctx.Err() == nil; n += 4 {
				limit, done := context.WithTimeout(ctx, time.Second)
				_, _ = m.log.ListOffsets(limit, &varvev1.ListOffsetsRequest{Topic: topic, Partitions: []int32{n % partitions}, Linearizable: true})
				done()
			}
		})
	}
	return func() { cancel(); asking.Wait() }
}

// TestManyFirstAppends appends to many partitions for the first time, while others read: they are taken
// side by side, and share commits.
func TestManyFirstAppends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const parts = 500
		c := newTestCluster(t)
		c.config.FlushInterval, c.config.LeaseTime = 250*time.Millisecond, 5*time.Second
		m := c.start()
		m.create(t, "a", parts, nil)
		m.create(t, "b", 1, nil)
		if _, err := m.append("b", 0, "x"); err != nil {
			t.Fatal(err)
		}
		commits := c.slow(m)
		stop := m.ask("b", 1)
		time.Sleep(time.Second)
		began, before := time.Now(), commits.Load()
		var all sync.WaitGroup
		for p := range int32(parts) {
			all.Go(func() {
				if _, err := m.append("a", p, fmt.Sprint(p)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if took, n := time.Since(began), commits.Load()-before; took > 2*time.Second || n > 20 {
			t.Errorf("the first appends to %d partitions took %s and %d commits", parts, took, n)
		}
		stop()
		m.table.clear()
		m.drain()
	})
}

// TestManyMoves lets a gateway with a thousand partitions leave, or die, while others read: the other one
// has all of them soon.
func TestManyMoves(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill=%v", kill), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testManyMoves(t, kill) })
		})
	}
}

func testManyMoves(t *testing.T, kill bool) {
	const parts = 2000
	c := newTestCluster(t)
	c.log = slog.New(slog.DiscardHandler)
	c.config.FlushInterval, c.config.LeaseTime, c.config.DrainTime = 250*time.Millisecond, 5*time.Second, 25*time.Second
	first, second := c.start(), c.start()
	first.create(t, "a", parts, nil)
	c.settle()
	var all sync.WaitGroup
	for p := range int32(parts) {
		all.Go(func() {
			if _, err := first.append("a", p, fmt.Sprint(p)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	c.slow(first)
	c.slow(second)
	stop := second.ask("a", parts)
	time.Sleep(time.Second)
	began := time.Now()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if kill {
			first.kill()
		} else {
			first.drain()
		}
	}()
	for time.Since(began) < time.Minute && second.tenure.Load().sequencer.holding.Load() < parts {
		time.Sleep(50 * time.Millisecond)
	}
	if took, most := time.Since(began), c.config.LeaseTime+2*time.Second; took > most {
		t.Errorf("the other one holds %d of %d after %s", second.tenure.Load().sequencer.holding.Load(), parts, took)
	} else {
		t.Logf("all moved after %s", took)
	}
	stop()
	<-gone
	second.table.clear()
	second.drain()
}
