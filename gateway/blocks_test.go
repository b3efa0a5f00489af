package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	peerv1 "github.com/varvelog/varve/api/varve/peer/v1"
	"github.com/varvelog/varve/api/varve/peer/v1/peerv1connect"
	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// readStore counts reads of segments, each of which takes a while.
type readStore struct {
	segments.Store
	gets, bytes, open, most atomic.Int64
	takes                   time.Duration
}

func (s *readStore) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	if !strings.HasSuffix(key, segments.Suffix) {
		return s.Store.Get(ctx, key, offset, length)
	}
	s.gets.Add(1)
	s.most.Store(max(s.most.Load(), s.open.Add(length)))
	defer s.open.Add(-length)
	if s.takes > 0 {
		select {
		case <-time.After(s.takes):
		case <-ctx.Done():
			return nil, 0, segments.Interrupted(ctx)
		}
	}
	data, size, err := s.Store.Get(ctx, key, offset, length)
	s.bytes.Add(int64(len(data)))
	return data, size, err
}

func (s *readStore) reset() {
	s.gets.Store(0)
	s.bytes.Store(0)
	s.most.Store(0)
}

// fillLarge appends so many records of 50 KiB, a segment each.
func (g *testGateway) fillLarge(t *testing.T, count int) {
	t.Helper()
	for n := range count {
		g.produce(t, "a", 0, batch.Record{Timestamp: int64(n), Value: bytes.Repeat([]byte{byte(n)}, 50<<10)})
	}
}

// consumeAll reads partition 0 from its start to where it ends now, and returns what its records begin with.
func (g *testGateway) consumeAll(ctx context.Context, t *testing.T) (seen []byte, err error) {
	c, err := g.consumerOf(ctx, t)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer c.end()
	defer cancel()
	c.send = func(m *varvev1.ConsumeResponse) error {
		for b, err := range batch.Split(m.GetRecordBatches()) {
			if err != nil {
				return err
			}
			for r, err := range batch.Records(b, storedLimits) {
				if err != nil {
					return err
				}
				if r.Offset != int64(len(seen)) {
					return fmt.Errorf("offset %d after %d records", r.Offset, len(seen))
				}
				seen = append(seen, r.Value[0])
			}
		}
		return nil
	}
	return seen, c.run(ctx, nil)
}

func (g *testGateway) consumerOf(ctx context.Context, t *testing.T) (*consumer, error) {
	topic, err := g.topic(ctx, "a")
	if err != nil {
		return nil, err
	}
	c, err := g.log.consumer(ctx, topic, &varvev1.ConsumeRequest{Topic: "a", MaxMessageBytes: 128 << 10, Partitions: []*varvev1.PartitionRange{
		{Partition: 0, Start: earliest(), End: &varvev1.Place{At: &varvev1.Place_Latest{Latest: true}}}}})
	if err == nil {
		c.reuse = true // as over HTTP
	}
	return c, err
}

func ascending(seen []byte, count int) bool {
	for n, b := range seen {
		if int(b) != n {
			return false
		}
	}
	return len(seen) == count
}

// TestFanOut has a hundred readers of one cold partition: the bucket is read once.
func TestFanOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory()
		store := &readStore{Store: d.Store, takes: 20 * time.Millisecond}
		d.Store = store
		g := runGateway(t, Config{Exclusive: true, FreshBytes: 1, CacheBlockBytes: 16 << 10}, d)
		g.create(t, "a", 1, nil)
		const count = 40
		g.fillLarge(t, count)
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() {
				if seen, err := g.consumeAll(t.Context(), t); err != nil || !ascending(seen, count) {
					t.Errorf("%v, %v", seen, err)
				}
			})
		}
		group.Wait()
		if gets, bytes := store.gets.Load(), store.bytes.Load(); gets > count || bytes > count*(50<<10+1000) {
			t.Errorf("%d segments of 50 KiB: %d GETs of %d bytes", count, gets, bytes)
		}
		g.leave()
		<-g.ended
	})
}

// TestPartitionsSideBySide has a reader of two partitions that have unlike parts of each segment: it comes to the segments with
// both at about the same time, so that each is read from the bucket once though few fit the cache.
func TestPartitionsSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory()
		store := &readStore{Store: d.Store, takes: 20 * time.Millisecond}
		d.Store = store
		g := runGateway(t, Config{Exclusive: true, FreshBytes: 1, CacheBlockBytes: 256 << 10, CacheBytes: 6 << 20}, d)
		g.create(t, "a", 2, nil)
		const segments = 80
		for n := range segments {
			var group sync.WaitGroup
			for i := range 4 {
				partition := int32(0)
				if rare := i == 0; rare != (n >= segments/2) {
					partition = 1
				}
				group.Go(func() {
					g.produce(t, "a", partition, batch.Record{Timestamp: int64(n), Value: bytes.Repeat([]byte{byte(n)}, 50<<10)})
				})
			}
			group.Wait()
		}
		time.Sleep(2 * tailTime)
		store.reset()
		topic := mustTopic(t, g.Gateway, "a")
		request := &varvev1.ConsumeRequest{Topic: "a", MaxMessageBytes: 64 << 10}
		for n := range int32(2) {
			request.Partitions = append(request.Partitions, &varvev1.PartitionRange{Partition: n, Start: earliest(), End: &varvev1.Place{At: &varvev1.Place_Latest{Latest: true}}})
		}
		c, err := g.log.consumer(t.Context(), topic, request)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		read := 0
		c.reuse, c.send = true, func(m *varvev1.ConsumeResponse) error {
			read += len(m.GetRecordBatches())
			return nil
		}
		err = c.run(ctx, nil)
		cancel()
		c.end()
		if want := segments * 4 * 50 << 10; err != nil || read < want {
			t.Errorf("%d bytes of %d, %v", read, want, err)
		}
		if got := store.bytes.Load(); got > int64(read)*11/10 {
			t.Errorf("%d bytes were read from the bucket for %d", got, read)
		}
		g.leave()
		<-g.ended
	})
}

// TestReadAhead: who reads on where it stopped finds there what the bucket has meanwhile sent, and a reader that
// leaves ends what was begun for it.
func TestReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory()
		store := &readStore{Store: d.Store, takes: 20 * time.Millisecond}
		d.Store = store
		took := make(map[int64]time.Duration)
		for _, ahead := range []int64{-1, 1 << 20} {
			g := runGateway(t, Config{Exclusive: true, FreshBytes: 1, CacheBlockBytes: 16 << 10, AheadBytes: ahead}, d)
			if ahead < 0 {
				g.create(t, "a", 1, nil)
				g.fillLarge(t, 40)
			}
			time.Sleep(2 * tailTime)
			store.reset()
			began := time.Now()
			if seen, err := g.consumeAll(t.Context(), t); err != nil || !ascending(seen, 40) {
				t.Errorf("%v, %v", seen, err)
			}
			took[ahead] = time.Since(began)
			if gets := store.gets.Load(); gets > 40 {
				t.Errorf("%d GETs of 40 segments", gets)
			}
			g.reader.blocks.clear()
			c, err := g.consumerOf(t.Context(), t)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			sent, begun, left := 0, false, time.Time{}
			c.send = func(*varvev1.ConsumeResponse) error {
				sent++
				synctest.Wait()
				if begun = store.open.Load() > 0; begun || sent == 10 {
					left = time.Now()
					cancel()
				}
				return nil
			}
			if err := c.run(ctx, nil); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			c.end()
			synctest.Wait()
			if begun != (ahead > 0) {
				t.Errorf("%d bytes ahead, it is read ahead: %v", ahead, begun)
			}
			if n := g.reader.goingThrough.Load(); n != 0 {
				t.Errorf("%d readers count", n)
			}
			if n, took := store.open.Load(), time.Since(left); n != 0 || took > 0 {
				t.Errorf("%s after the reader left %d bytes are on their way for nobody", took, n)
			}
			g.leave()
			<-g.ended
		}
		if took[1<<20] > took[-1]/2 {
			t.Errorf("it took %s, without reading ahead %s", took[1<<20], took[-1])
		}
	})
}

// TestWaitingReads: reads that wait for others, as too much is on its way, hold no memory for what they will bring.
func TestWaitingReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const block, reads = 1 << 20, 64
		d := memory()
		d.Store = &readStore{Store: d.Store, takes: time.Second}
		g := runGateway(t, Config{Exclusive: true, CacheBlockBytes: block, ColdBytes: 2 * block}, d)
		ctx, cancel := context.WithCancel(t.Context())
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var group sync.WaitGroup
		for n := range reads {
			group.Go(func() {
				key := segments.ObjectKey(segments.ClusterID(g.ClusterID()), "gone", uint64(n+1))
				if err := g.reader.blocks.cache.Prepare(ctx, key, 0, block); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > reads/4*block {
			t.Errorf("%d reads of %d bytes, of which %d may be on their way, took %d bytes of memory", reads, block, 2*block, used)
		}
		cancel()
		group.Wait()
		g.leave()
		<-g.ended
	})
}

// startZone starts gateways that share a zone, and one of another zone, on a bucket that counts.
func startZone(t *testing.T, zones ...string) (*testCluster, *readStore, []*member) {
	c := newTestCluster(t)
	store := &readStore{Store: c.d.Store, takes: 20 * time.Millisecond}
	c.d.Store = store
	c.config.FreshBytes, c.config.CacheBlockBytes = 1, 16<<10
	var members []*member
	for _, zone := range zones {
		c.config.Zone = zone
		members = append(members, c.start())
	}
	members[0].create(t, "a", 1, nil)
	c.settle()
	return c, store, members
}

// TestZone: gateways of one zone read each block from the bucket once, those of others read for themselves.
func TestZone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, store, members := startZone(t, "z1", "z1", "z1", "z2", "")
		const count = 40
		members[0].fillLarge(t, count)
		time.Sleep(2 * tailTime)
		store.reset()
		for i, m := range members {
			if seen, err := m.consumeAll(t.Context(), t); err != nil || !ascending(seen, count) {
				t.Errorf("%v, %v", seen, err)
			}
			times := int64(max(1, i-1))
			if gets := store.gets.Load(); gets > times*count || gets < times*count/2 {
				t.Errorf("%d gateways read, %d GETs", i+1, gets)
			}
		}
		lent, borrowed := uint64(0), uint64(0)
		for i, m := range members {
			lent += m.meters.blocksLent.Load()
			borrowed += m.meters.blocksBorrowed.Load()
			if i > 2 && m.meters.blocksLent.Load()+m.meters.blocksBorrowed.Load() > 0 {
				t.Errorf("records went to or from another zone")
			}
			if n := m.meters.blocksLate.Load(); n != 0 {
				t.Errorf("%d reads did not come in time", n)
			}
		}
		if lent == 0 || lent != borrowed {
			t.Errorf("%d were lent, %d borrowed", lent, borrowed)
		}
		client := &peerv1.ReadBlockRequest{Call: members[3].peers.introduce(members[0].ID()), Zone: "z2", Gateway: string(members[0].ID()), Number: 1, Length: 1}
		if _, err := (&peerService{members[0].Gateway}).ReadBlock(t.Context(), client); connect.CodeOf(classified(err)) != connect.CodeFailedPrecondition {
			t.Errorf("a call from another zone: %v", err)
		}
		for _, m := range members {
			m.drain()
		}
	})
}

// TestZoneTrouble: a gateway of the zone that answers nothing, or garbage, or cannot be reached costs a moment.
func TestZoneTrouble(t *testing.T) {
	for name, answer := range map[string]func(context.Context, *peerv1.ReadBlockRequest) (any, error){
		"nothing": func(ctx context.Context, _ *peerv1.ReadBlockRequest) (any, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"an error": func(context.Context, *peerv1.ReadBlockRequest) (any, error) {
			return nil, connect.NewError(connect.CodeInternal, "no")
		},
		"garbage": func(_ context.Context, r *peerv1.ReadBlockRequest) (any, error) {
			return &peerv1.ReadBlockResponse{Data: make([]byte, r.GetLength())}, nil
		},
		"too much": func(_ context.Context, r *peerv1.ReadBlockRequest) (any, error) {
			return &peerv1.ReadBlockResponse{Data: make([]byte, r.GetLength()+1)}, nil
		},
		"too little": func(context.Context, *peerv1.ReadBlockRequest) (any, error) {
			return &peerv1.ReadBlockResponse{}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _, members := startZone(t, "z")
				i := &impostor{zone: "z", answer: func(ctx context.Context, request any) (any, error) {
					if r, ok := request.(*peerv1.ReadBlockRequest); ok {
						return answer(ctx, r)
					}
					return nil, connect.NewError(connect.CodeUnavailable, "not now")
				}, tell: func(peerv1connect.PeerServiceWatchServerStream) error { return errors.New("no") }}
				m := members[0]
				m.fillLarge(t, 40)
				c.appear(peerProtocol, i)
				c.settle()
				if n := len(m.members.zone()); n != 2 {
					t.Fatalf("%d gateways in the zone", n)
				}
				began := time.Now()
				if seen, err := m.consumeAll(t.Context(), t); err != nil || !ascending(seen, 40) {
					t.Errorf("%v, %v", seen, err)
				}
				if took := time.Since(began); took > 3*time.Second {
					t.Errorf("it took %s", took)
				}
				i.leave()
				m.drain()
			})
		})
	}
}

// TestMovedObject: an index that names an object which is gone is read again, and the reader goes on. Only what the
// newest index names too is lost, and that is said.
func TestMovedObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.FreshBytes = 1
		first, second := c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		p := foreign(t, topic, second) // first reads it by a mirror
		for n := range 3 {
			if _, err := second.append("a", p, fmt.Sprint(n)); err != nil {
				t.Fatal(err)
			}
		}
		id := metadata.PartitionID{Topic: topic.ID, Number: p}
		if got := first.values(t, "a", p); len(got) != 3 {
			t.Fatal(got)
		}
		// What it knows of the partition is from before a merge.
		at := first.partitions.get(id)
		right := at.view.Load()
		old := *right
		old.Tail = append([]metadata.Entry(nil), right.Tail...)
		old.Tail[1].Number = 1 << 40
		at.view.Store(&old)
		if got := first.values(t, "a", p); len(got) != 3 || got[1] != "1" {
			t.Errorf("it reads %v", got)
		}
		if at.view.Load() == &old {
			t.Error("it still has the old index")
		}
		// Now it is lost.
		e := right.Tail[1]
		if err := c.d.Store.Delete(t.Context(), segments.ObjectKey(segments.ClusterID(first.ClusterID()), segments.GatewayID(e.Gateway), e.Number)); err != nil {
			t.Fatal(err)
		}
		first.reader.blocks.clear()
		place := &varvev1.Place{At: &varvev1.Place_Offset{Offset: 1}}
		_, err := first.log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a", Partition: p, Start: place})
		if err = classified(err); connect.CodeOf(err) != connect.CodeDataLoss || !strings.Contains(err.Error(), "offsets 1 to 1") {
			t.Errorf("a lost object: %v", err)
		}
		first.drain()
		second.drain()
	})
}

// TestDamagedOnItsWay: bytes that are damaged in memory are read again, those that are damaged in the bucket are not let through.
func TestDamagedOnItsWay(t *testing.T) {
	if seeded.Has(seeded.MissingIsEmpty) {
		t.Skip("another bug is planted")
	}
	d := memory()
	g := startGateway(t, Config{Exclusive: true, FreshBytes: 1, CacheBlockBytes: 64 << 10}, d)
	g.create(t, "a", 1, nil)
	g.fillLarge(t, 3)
	key := segments.ObjectKey(segments.ClusterID(g.ClusterID()), segments.GatewayID(g.ID()), 2)
	data, _, err := d.Store.Get(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	// The cache gets the damaged bytes, the bucket has the right ones; then both the damaged.
	for _, lost := range []bool{false, true} {
		right := g.store
		damaged := memory().Store
		if err := damaged.Put(t.Context(), key, segments.NewBody(data)); err != nil {
			t.Fatal(err)
		}
		g.store = damaged
		g.reader.blocks.clear()
		if err := g.reader.blocks.cache.Prepare(t.Context(), key, 0, len(data)); err != nil {
			t.Fatal(err)
		}
		if !lost {
			g.store = right
		}
		out, err := g.log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a", Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: 1}}, MaxBytes: 1})
		g.store = right
		switch {
		case lost && connect.CodeOf(classified(err)) != connect.CodeDataLoss:
			t.Errorf("damaged in the bucket: %v", err)
		case !lost && (err != nil || out.GetNextOffset() != 2):
			t.Errorf("damaged in memory: %v, %v", out.GetNextOffset(), err)
		}
	}
	if n := g.meters.blocksDamaged.Load(); n != 1 {
		t.Errorf("%d damages", n)
	}
}
