package verify_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/verify"
)

// fleet is gateways that share a bucket and a table, and reach each other in this process.
type fleet struct {
	t     *testing.T
	store *memstore.Store
	table *memtable.Table
	count int

	mu    sync.Mutex
	peers map[string]*connect.Server
}

// mortal is a connection to bucket or table that breaks for ever when its gateway dies.
type mortal struct{ dead *atomic.Bool }

var errDead = errors.New("the gateway is dead")

type mortalTable struct {
	metadata.Table
	mortal
}

func (m mortalTable) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	if m.dead.Load() {
		return metadata.Row{}, fmt.Errorf("%w: %w", metadata.ErrUnavailable, errDead)
	}
	return m.Table.Get(ctx, key, c)
}

func (m mortalTable) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	if m.dead.Load() {
		return nil, fmt.Errorf("%w: %w", metadata.ErrUnavailable, errDead)
	}
	return m.Table.Range(ctx, r)
}

func (m mortalTable) Put(ctx context.Context, row metadata.Row, c metadata.Condition) error {
	if m.dead.Load() {
		return fmt.Errorf("%w: %w", metadata.ErrUnavailable, errDead)
	}
	return m.Table.Put(ctx, row, c)
}

type mortalStore struct {
	segments.Store
	mortal
}

func (m mortalStore) Put(ctx context.Context, key string, body segments.Body) error {
	if m.dead.Load() {
		return fmt.Errorf("%w: %w", segments.ErrUnavailable, errDead)
	}
	return m.Store.Put(ctx, key, body)
}

// member is a gateway of the fleet.
type member struct {
	*running
	dead *atomic.Bool
}

func (f *fleet) start() *member {
	f.t.Helper()
	f.count++
	address := fmt.Sprintf("peer-%d:1", f.count)
	dead := &atomic.Bool{}
	d := gateway.Dependencies{Store: mortalStore{f.store, mortal{dead}}, Table: mortalTable{f.table, mortal{dead}}, Dial: f.dial}
	collecting, stopCollecting := context.WithCancel(context.Background())
	var collectors sync.WaitGroup
	r, err := startWith(gateway.Config{PeerAddress: address, LeaseTime: 500 * time.Millisecond, DrainTime: 2 * time.Second}, d, func(g *gateway.Gateway) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.peers[address] = g.PeerServer()
		c, err := compactor.NewCollector(compactor.CollectConfig{Store: d.Store, Table: d.Table, Gateways: g, Grace: 20 * time.Millisecond, Interval: 100 * time.Millisecond})
		if err != nil {
			f.t.Fatal(err)
		}
		collectors.Go(func() { _ = c.Run(collecting, g) })
	})
	if err != nil {
		f.t.Fatal(err)
	}
	stop := r.stop
	r.stop = func() error {
		stopCollecting()
		collectors.Wait()
		return stop()
	}
	return &member{r, dead}
}

func (f *fleet) dial(address string) connect.Transport { return peer{f, address} }

type peer struct {
	f       *fleet
	address string
}

func (p peer) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	p.f.mu.Lock()
	server := p.f.peers[p.address]
	p.f.mu.Unlock()
	if server == nil {
		return nil, connect.NewError(connect.CodeUnavailable, "no route to "+p.address)
	}
	return connectinprocess.New(server).NewClientStream(ctx, spec)
}

// cutOff lets nobody reach a gateway any more.
func (f *fleet) cutOff(m *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.peers, m.address)
}

// TestFleet verifies in a loop while gateways join, leave in good order and die, with appends to
// partitions that move between them, trims, and a collector of garbage beside each gateway.
func TestFleet(t *testing.T) {
	t.Parallel()
	f := &fleet{t: t, store: memstore.New(), table: memtable.New(), peers: make(map[string]*connect.Server)}
	first, second := f.start(), f.start()
	servers := []string{first.server.URL, second.server.URL}
	if _, _, err := first.CreateTopic(t.Context(), "a", client.CreateTopicOptions{Partitions: 6}); err != nil {
		t.Fatal(err)
	}
	third := f.start()
	c, err := client.New(client.Config{Servers: append(servers, third.server.URL), RequestTimeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var appended atomic.Int64
	finished := errors.New("finished")
	ctx, done := context.WithCancelCause(t.Context())
	defer done(nil)
	var work errgroup.Group
	for partition := range int32(6) {
		work.Go(func() error {
			err := appendUntil(ctx, c, partition, &appended)
			if errors.Is(context.Cause(ctx), finished) {
				return nil
			}
			done(err)
			return err
		})
	}
	rounds := 0
	verifyUntil := func(target int64) {
		t.Helper()
		for ; appended.Load() < target && ctx.Err() == nil; rounds++ {
			summary, err := check(t.Context(), verify.Config{Store: f.store, Table: f.table, Deep: rounds%2 == 0, Repair: rounds%3 == 0, Grace: time.Nanosecond})
			if err != nil {
				t.Fatalf("round %d: %v\n%+v", rounds, err, summary)
			}
		}
	}
	const more = 600
	verifyUntil(more)
	fourth := f.start()
	verifyUntil(2 * more)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	f.cutOff(first)
	verifyUntil(appended.Load() + more)
	f.cutOff(second)
	second.dead.Store(true)
	ended := make(chan struct{})
	go func() {
		_ = second.stop() // it does not end well
		close(ended)
	}()
	verifyUntil(appended.Load() + more)
	done(finished)
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	<-ended
	for _, m := range []*member{third, fourth} {
		if err := m.stop(); err != nil {
			t.Error(err)
		}
	}
	summary, err := check(t.Context(), verify.Config{Store: f.store, Table: f.table, Deep: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d appends, %d rounds; at the end %+v", appended.Load(), rounds, summary)
	if summary.Objects > appended.Load()/2 {
		t.Errorf("%d objects are there after %d appends of which most were trimmed: nobody collected", summary.Objects, appended.Load())
	}
	// The one that died is not closed: what it had not settled may yet come.
	collector, err := compactor.NewCollector(compactor.CollectConfig{Store: f.store, Table: f.table, Gateways: compactor.NobodyLives{}, Grace: -1})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := collector.Collect(t.Context(), compactor.CollectOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	after, err := check(t.Context(), verify.Config{Store: f.store, Table: f.table, Deep: true, Grace: time.Nanosecond})
	if err != nil || after.Garbage > 0 || after.Records != summary.Records {
		t.Errorf("after a collection %+v %v", after, err)
	}
}
