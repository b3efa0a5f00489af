package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	peerv1 "github.com/varvelog/varve/api/varve/peer/v1"
	"github.com/varvelog/varve/metadata"
)

// afterTable lets a put take effect and then has a say in what its caller hears.
type afterTable struct {
	metadata.Table
	after atomic.Pointer[func(metadata.Row) error]
}

func (a *afterTable) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	err := a.Table.Put(ctx, row, cond)
	if f := a.after.Load(); err == nil && f != nil {
		return (*f)(row)
	}
	return err
}

// F1: the put that releases a partition takes effect, its answer is lost, and the next owner
// is quicker than the read back: the old owner goes on committing.
func TestReviewReleaseInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		table := &afterTable{Table: c.d.Table}
		c.d.Table = table
		first := c.start()
		first.create(t, "a", clusterPartitions, nil)
		for p := range int32(clusterPartitions) {
			if _, err := first.append("a", p, "seed"); err != nil {
				t.Fatal(err)
			}
		}
		second := c.start()
		var group sync.WaitGroup
		lost := func(row metadata.Row) error {
			if row.Sort == "lease" && row.Stamp == (metadata.Stamp{Epoch: 1, Sequence: 2}) {
				var p int32
				fmt.Sscanf(row.Partition[strings.LastIndex(row.Partition, "/")+1:], "%d", &p)
				group.Go(func() { // a first append there, at its new sequencer
					at, err := second.append("a", p, "second")
					t.Logf("partition %d: second got %d, %v", p, at, err)
				})
				time.Sleep(300 * time.Millisecond) // the answer never comes
				return fmt.Errorf("%w: answer lost", metadata.ErrUnknown)
			}
			return nil
		}
		table.after.Store(&lost)
		l := startLoad(t, first)
		l.tolerate = func(err error) bool { return connect.CodeOf(classified(err)) == connect.CodeUnavailable }
		time.Sleep(10 * time.Second)
		l.stop()
		group.Wait()
		l.check(second)
		first.drain()
		second.drain()
	})
}

// tamper is a transport that may change what comes back, or hang.
type tamper struct {
	connect.Transport
	on *tampering
}

type tampering struct {
	garble  atomic.Int64 // so many Refer answers are garbled
	lose    atomic.Int64 // so many Refer answers are lost, late
	hang    atomic.Bool  // Watch is accepted and says nothing
	streams atomic.Int64
	refuse  atomic.Bool  // Watch tells of nothing, and refuses all
	refused atomic.Int64 // so often
}

type tamperStream struct {
	connect.ClientStream
	ctx  context.Context
	spec connect.Spec
	on   *tampering
}

func (t tamper) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	s, err := t.Transport.NewClientStream(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &tamperStream{s, ctx, spec, t.on}, nil
}

func (s *tamperStream) Receive(msg any) error {
	if strings.HasSuffix(s.spec.Procedure, "/Watch") && s.on.hang.Load() {
		s.on.streams.Add(1)
		<-s.ctx.Done()
		return s.ctx.Err()
	}
	err := s.ClientStream.Receive(msg)
	if r, ok := msg.(*peerv1.WatchResponse); ok && err == nil && s.on.refuse.Load() {
		for i, u := range r.GetUpdates() {
			r.Updates[i] = &peerv1.Update{Partition: u.GetPartition(), Refusal: &peerv1.Refusal{Kind: peerv1.Refusal_KIND_BUSY}}
			s.on.refused.Add(1)
		}
	}
	if r, ok := msg.(*peerv1.ReferResponse); ok && err == nil {
		if s.on.garble.Add(-1) >= 0 {
			for _, result := range r.Results {
				if result.Verdict != nil {
					result.Verdict = []byte{0xff, 0xff}
				}
			}
		}
		if s.on.lose.Add(-1) >= 0 {
			<-s.ctx.Done()
			return s.ctx.Err()
		}
	}
	return err
}

func (c *testCluster) startTampered(on *tampering) *member {
	dial := c.network
	c.count++
	m := &member{cluster: c, address: fmt.Sprintf("peer-%d:1", c.count), life: &life{}}
	config, d := c.config, c.d
	config.PeerAddress = m.address
	d.Dial = func(address string) connect.Transport { return tamper{dial.Dial(address), on} }
	m.table = &hookedTable{Table: mortalTable{d.Table, m.life}}
	d.Table = m.table
	d.Store = mortalStore{d.Store, m.life}
	d.Log = c.log.With("member", c.count)
	m.runningGateway = runGatewayWith(c.t, config, d, func(g *Gateway) { c.network.set(m.address, g.PeerServer()) })
	return m
}

// foreign is a partition that by sequences.
func foreign(t *testing.T, topic *metadata.Topic, by *member) int32 {
	for p := range topic.Partitions {
		if by.members.winner(metadata.PartitionID{Topic: topic.ID, Number: p}) == by.ID() {
			return p
		}
	}
	t.Fatal("none")
	return 0
}

// F: one garbled verdict from a peer refuses a partition's appends until a restart, and says
// of an append that was committed that it was not.
func TestReviewGarbledVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		on := &tampering{}
		first, second := c.start(), c.startTampered(on)
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		p := foreign(t, topic, first)
		if _, err := second.append("a", p, "0"); err != nil {
			t.Fatal(err)
		}
		on.garble.Store(1)
		_, err := second.append("a", p, "1")
		t.Log("the garbled one:", err, "the log:", first.values(t, "a", p))
		if err != nil {
			t.Errorf("definite error %v", connect.CodeOf(classified(err)))
		}
		if _, err := second.append("a", p, "2"); err != nil {
			t.Errorf("and ever after: %v", err)
		}
		first.drain()
		second.drain()
	})
}

// F: a partition that leaves a stream and comes back to it before the stream has said so is
// never told about again.
func TestReviewEndAfterBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second := c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		p := foreign(t, topic, first)
		partition := second.partitions.get(metadata.PartitionID{Topic: topic.ID, Number: p})
		if _, err := second.view(t.Context(), partition.id); err != nil {
			t.Fatal(err)
		}
		// tidy, and at once a reader.
		second.mirrors.mu.Lock()
		second.mirrors.leaveLocked(partition)
		second.mirrors.wantLocked(partition)
		second.mirrors.mu.Unlock()
		wake := make(chan struct{}, 1)
		end := partition.subscribe(wakeUp(wake))
		if _, err := second.view(t.Context(), partition.id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		select {
		case <-wake:
		default:
		}
		if _, err := first.append("a", p, "x"); err != nil {
			t.Fatal(err)
		}
		select {
		case <-wake:
		case <-time.After(time.Hour):
			t.Error("a follower was not woken for an hour")
		}
		end()
		first.drain()
		second.drain()
	})
}

// F: the put that takes a partition is slow while its winner changes: it stays with the
// wrong gateway, and who reads it on the right one sees none of its commits.
func TestReviewTakenLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		table := &gateTable{Table: c.d.Table}
		c.d.Table = table
		first := c.start()
		topic := first.create(t, "a", 200, nil)
		c.settle()
		gate := make(chan struct{})
		table.gate.Store(&gate)
		for p := range int32(200) { // their lease rows are throttled
			go first.append("a", p, "0")
		}
		time.Sleep(time.Second)
		table.open.Store(true) // for those that begin now
		second := c.start()
		c.settle()
		p := foreign(t, topic, second)
		id := metadata.PartitionID{Topic: topic.ID, Number: p}
		partition := second.partitions.get(id)
		wake := make(chan struct{}, 1)
		end := partition.subscribe(wakeUp(wake))
		if _, err := second.view(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * c.config.LeaseTime)
		select {
		case <-wake:
		default:
		}
		close(gate)
		time.Sleep(time.Second)
		for n := range 3 {
			at, err := first.append("a", p, "1")
			t.Log(n, at, err)
		}
		select {
		case <-wake:
		case <-time.After(time.Hour):
			v, err := second.view(t.Context(), id)
			now, errNow := second.viewNow(t.Context(), id)
			t.Errorf("not woken; an hour later a read there sees %d records (%v), there are %d (%v)", v.Next, err, now.Next, errNow)
		}
		end()
		first.drain()
		second.drain()
	})
}

type gateTable struct {
	metadata.Table
	gate atomic.Pointer[chan struct{}]
	open atomic.Bool
}

func (g *gateTable) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	if gate := g.gate.Load(); gate != nil && row.Sort == "lease" && !g.open.Load() {
		select {
		case <-*gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return g.Table.Put(ctx, row, cond)
}
