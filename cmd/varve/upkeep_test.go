package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/internal/upkeep"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments/memstore"
)

// keptGateway is a gateway with all that looks after its log, as varve serve puts it together, in virtual time.
type keptGateway struct {
	*gateway.Gateway
	topics varvev1connect.TopicServiceClient
	log    varvev1connect.LogServiceClient
	stop   func()
}

// keptCluster is gateways that share a bucket and a table.
type keptCluster struct {
	t     *testing.T
	store *memstore.Store
	table *countedTable
	count int
	peers map[string]*connect.Server
}

// countedTable counts calls.
type countedTable struct {
	metadata.Table
	puts, reads atomic.Int64
}

func (c *countedTable) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	if row.Partition != "gateways" && row.Partition != "cluster" { // heartbeats, and what a collection begins with
		c.puts.Add(1)
	}
	return c.Table.Put(ctx, row, cond)
}

func (c *countedTable) Get(ctx context.Context, key metadata.Key, consistency metadata.Consistency) (metadata.Row, error) {
	c.reads.Add(1)
	return c.Table.Get(ctx, key, consistency)
}

func (c *countedTable) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	if r.Partition != "gateways" {
		c.reads.Add(1)
	}
	return c.Table.Range(ctx, r)
}

func newKeptCluster(t *testing.T) *keptCluster {
	return &keptCluster{t: t, store: memstore.New(), table: &countedTable{Table: memtable.New()}, peers: make(map[string]*connect.Server)}
}

// start starts a gateway whose wall clock is off.
func (c *keptCluster) start(off time.Duration) *keptGateway {
	c.t.Helper()
	c.count++
	address := fmt.Sprintf("peer-%d:1", c.count)
	log := slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("gateway", c.count)
	g, err := gateway.New(gateway.Config{FlushInterval: 5 * time.Millisecond, LeaseTime: 2 * time.Second, PeerAddress: address, AutoCreate: 1}, gateway.Dependencies{
		Store: c.store, Table: c.table, Log: log, FreeMemory: func() {},
		Now:  func() time.Time { return time.Now().Add(off).Round(0) },
		Dial: func(address string) connect.Transport { return connectinprocess.New(c.peers[address]) },
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.peers[address] = g.PeerServer()
	care, err := upkeep.New(g, upkeep.Config{Log: log, Collecting: compactor.CollectConfig{Interval: 1000 * time.Hour}}) // what is counted is retention's
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- g.Run(ctx, func() {
			care.Start(ctx)
			close(started)
		})
	}()
	<-started
	transport := connectinprocess.New(g.APIServer())
	return &keptGateway{Gateway: g, topics: varvev1connect.NewTopicServiceClient(connect.NewClient(transport)),
		log: varvev1connect.NewLogServiceClient(connect.NewClient(transport)),
		stop: func() {
			cancel()
			if err := <-ended; err != nil {
				c.t.Errorf("it did not end well: %v", err)
			}
			care.Stop()
		}}
}

func (g *keptGateway) create(t *testing.T, name string, partitions int32, set map[string]string) metadata.TopicID {
	t.Helper()
	out, err := g.topics.CreateTopic(t.Context(), &varvev1.CreateTopicRequest{Name: name, Partitions: partitions, Config: set})
	if err != nil {
		t.Fatal(err)
	}
	id, err := metadata.ParseTopicID(out.GetTopic().GetId())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// produce appends a record of a moment to each partition.
func (g *keptGateway) produce(t *testing.T, topic string, partitions int32, at time.Time) {
	t.Helper()
	ms := at.UnixMilli()
	for p := range partitions {
		if _, err := g.log.Produce(t.Context(), &varvev1.ProduceRequest{Topic: topic, Partition: &p, Records: []*varvev1.Record{{Value: []byte("x"), Timestamp: &ms}}}); err != nil {
			t.Fatal(err)
		}
	}
}

// starts lists where the partitions of a topic start.
func (g *keptGateway) starts(t *testing.T, topic string) []int64 {
	t.Helper()
	out, err := g.topics.DescribeTopic(t.Context(), &varvev1.DescribeTopicRequest{Name: topic})
	if err != nil {
		t.Fatal(err)
	}
	var list []int64
	for _, p := range out.GetPartitions() {
		list = append(list, p.GetStartOffset())
	}
	return list
}

func (g *keptGateway) want(t *testing.T, topic string, start int64) {
	t.Helper()
	for p, got := range g.starts(t, topic) {
		if got != start {
			t.Errorf("%s/%d starts at %d, want %d", topic, p, got, start)
		}
	}
}

// TestRetentionInACluster: three gateways share the work, one's clock is a day ahead and removes nothing too
// early; another retention is noticed within seconds on whichever gateway it is set; and
// while nothing expires nothing is written, and hardly anything read.
func TestRetentionInACluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const partitions = 12
		c := newKeptCluster(t)
		ahead, second, third := c.start(24*time.Hour), c.start(0), c.start(0)
		time.Sleep(5 * time.Second)
		second.create(t, "a", partitions, map[string]string{"retention.ms": "3600000"})
		second.create(t, "kept", partitions, nil)
		second.produce(t, "a", partitions, time.Now())
		second.produce(t, "kept", partitions, time.Now())
		time.Sleep(30 * time.Minute)
		ahead.want(t, "a", 0)
		third.produce(t, "a", partitions, time.Now())
		time.Sleep(30*time.Minute + 10*time.Second)
		third.want(t, "a", 1)
		time.Sleep(time.Minute)
		puts, reads := c.table.puts.Load(), c.table.reads.Load()
		time.Sleep(20 * time.Minute)
		if n := c.table.puts.Load() - puts; n > 0 {
			t.Errorf("%d writes in twenty idle minutes", n)
		}
		if n := c.table.reads.Load() - reads; n > 20 {
			t.Errorf("%d reads in twenty idle minutes", n)
		}
		if _, err := ahead.topics.AlterTopic(t.Context(), &varvev1.AlterTopicRequest{Name: "a", Set: map[string]string{"retention.ms": "60000"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		second.want(t, "a", 2)
		second.want(t, "kept", 0)
		// What a gateway looked after others look after when it goes.
		second.produce(t, "a", partitions, time.Now())
		third.stop()
		time.Sleep(time.Minute + 10*time.Second)
		second.want(t, "a", 3)
		ahead.stop()
		second.stop()
	})
}

// TestDeletedInMidRetention deletes a topic whose records are about to go: its rows go, what reminds of
// it stays until all gateways that knew of it are closed, and a topic of the same name is none of it.
func TestDeletedInMidRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const partitions = 6
		c := newKeptCluster(t)
		first, second := c.start(0), c.start(0)
		time.Sleep(5 * time.Second)
		id := first.create(t, "a", partitions, map[string]string{"retention.ms": "60000", "retention.bytes": "1000"})
		for range 30 {
			first.produce(t, "a", partitions, time.Now())
			time.Sleep(2 * time.Second)
		}
		if _, err := second.topics.DeleteTopic(t.Context(), &varvev1.DeleteTopicRequest{Name: "a"}); err != nil {
			t.Fatal(err)
		}
		again := second.create(t, "a", 1, map[string]string{"retention.ms": "3600000"})
		first.produce(t, "a", 1, time.Now())
		time.Sleep(2 * time.Minute)
		for n := range int32(partitions) {
			rows, err := c.table.Range(t.Context(), metadata.PartitionRows(metadata.PartitionID{Topic: id, Number: n}))
			if err != nil || len(rows) > 0 {
				t.Errorf("partition %d has %d rows left, %v", n, len(rows), err)
			}
		}
		if starts := first.starts(t, "a"); again == id || starts[0] != 0 {
			t.Errorf("the new topic begins at %v", starts)
		}
		reminder := func(done bool) {
			t.Helper()
			removed, err := metadata.ListRemoved(t.Context(), c.table)
			if err != nil || len(removed) != 1 || removed[0].ID != id || !removed[0].Swept || removed[0].Done != done || !done && len(removed[0].Waits) != 2 {
				t.Errorf("%+v, %v", removed, err)
			}
		}
		reminder(false)
		first.stop()
		third := c.start(0)
		time.Sleep(10 * time.Second)
		reminder(false) // the second one may know of it
		second.stop()
		time.Sleep(10 * time.Second)
		reminder(true)
		third.stop()
	})
}
