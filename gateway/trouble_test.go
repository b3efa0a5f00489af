package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	peerv1 "github.com/varvelog/varve/api/varve/peer/v1"
	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
)

// What gateways do to each other when something is wrong between them.

// TestReferredInACircle has two gateways that each believe the other one to sequence a partition which
// nobody does: a linearizable reader is answered all the same.
func TestReferredInACircle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second, third := c.start(), c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		// first should have it and sends others on to second, which sends them back.
		id := metadata.PartitionID{Topic: topic.ID, Number: foreign(t, topic, first)}
		first.router.learn(id, second.ID())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if v, err := third.viewNow(ctx, id); err != nil || v.Next != 0 {
			t.Errorf("%v, %v", v, err)
		}
		first.drain()
		second.drain()
		third.drain()
	})
}

// TestSilentWatch has a gateway that accepts a watcher and tells it nothing: a follower hears of
// an append all the same, and the streams do not multiply.
func TestSilentWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		on := &tampering{}
		on.hang.Store(true)
		first, second := c.start(), c.startTampered(on)
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		p := foreign(t, topic, first)
		got := make(chan error, 1)
		go func() {
			out, err := second.log.Fetch(context.Background(), &varvev1.FetchRequest{Topic: "a", Partition: p, MaxWaitMs: 30_000})
			if err == nil && out.GetNextOffset() != 1 {
				err = fmt.Errorf("it reached %d", out.GetNextOffset())
			}
			got <- err
		}()
		time.Sleep(2 * time.Second)
		if _, err := first.append("a", p, "x"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := <-got; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > patience+time.Second {
			t.Errorf("it took %s", took)
		}
		end := second.partitions.get(metadata.PartitionID{Topic: topic.ID, Number: p}).subscribe(wakeUp(make(chan struct{}, 1)))
		time.Sleep(time.Minute)
		end()
		if n := on.streams.Load(); n < 2 || n > 15 {
			t.Errorf("%d streams in a minute", n)
		}
		first.drain()
		second.drain()
	})
}

// TestRefusedWatch has a gateway that refuses each watcher at once, for a minute and with many
// readers: it is asked at a steady pace.
func TestRefusedWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		on := &tampering{}
		on.refuse.Store(true)
		first, second := c.start(), c.startTampered(on)
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		p := foreign(t, topic, first)
		id := metadata.PartitionID{Topic: topic.ID, Number: p}
		if _, err := first.append("a", p, "x"); err != nil {
			t.Fatal(err)
		}
		end := second.partitions.get(id).subscribe(wakeUp(make(chan struct{}, 1)))
		for range 6000 {
			if v, err := second.view(t.Context(), id); err != nil || v.Next != 1 {
				t.Fatal(v, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		end()
		if n := on.refused.Load(); n < 100 || n > 700 {
			t.Errorf("asked %d times in a minute", n)
		}
		first.drain()
		second.drain()
	})
}

// TestUnreachableSequencer cuts two gateways off each other while both reach the table: appends to
// what the other one sequences are refused as retriable after a while, those to one's own go on, and
// all of it works again when the link does.
func TestUnreachableSequencer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second := c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		mine, other := foreign(t, topic, second), foreign(t, topic, first)
		c.network.disconnect(first.address, true)
		kept := make(chan error, 1)
		go func() {
			_, err := second.append("a", other, "kept")
			kept <- err
		}()
		var refused atomic.Int64
		slowest := time.Duration(0)
		for n := range 200 {
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				_, err := second.log.Produce(ctx, &varvev1.ProduceRequest{Topic: "a", Partition: &other, Records: []*varvev1.Record{{Value: []byte("x")}}})
				if connect.CodeOf(classified(err)) == connect.CodeUnavailable && classify(err).info.GetRetriable() {
					refused.Add(1)
				}
			}()
			began := time.Now()
			if at, err := second.append("a", mine, fmt.Sprint(n)); err != nil || at != int64(n) {
				t.Fatalf("an append that needs nobody else: %d, %v", at, err)
			}
			slowest = max(slowest, time.Since(began))
			time.Sleep(100 * time.Millisecond)
		}
		if slowest > 500*time.Millisecond {
			t.Errorf("an append that needs nobody else took %s", slowest)
		}
		if refused := refused.Load(); refused < 100 {
			t.Errorf("%d appends were refused while their sequencer could not be reached", refused)
		}
		if n := second.tenure.Load().intake.chains[spanOf(metadata.PartitionID{Topic: topic.ID, Number: other})].open; len(n) > 60 {
			t.Errorf("%d references wait", len(n))
		}
		c.network.disconnect(first.address, false)
		if err := <-kept; err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		if _, err := second.append("a", other, "again"); err != nil {
			t.Error(err)
		}
		first.drain()
		second.drain()
	})
}

// TestKilledWhileDraining kills a gateway that had said that it leaves: what it had not handed over
// is taken, also while nobody else comes or goes.
func TestKilledWhileDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second := c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		p := foreign(t, topic, first)
		if _, err := first.append("a", p, "x"); err != nil {
			t.Fatal(err)
		}
		id := first.ID()
		first.tenure.Load().own.draining(t.Context())
		time.Sleep(c.config.LeaseTime) // the other one knows
		first.kill()
		time.Sleep(4 * c.config.LeaseTime)
		row, err := c.row(id)
		if err != nil || row.State != metadata.GatewaySealed {
			t.Errorf("its row: %+v, %v", row, err)
		}
		lease, err := metadata.ReadLease(t.Context(), c.d.Table, metadata.PartitionID{Topic: topic.ID, Number: p}, metadata.Strong)
		if err != nil || lease.Journal != second.ID() {
			t.Errorf("its partition: %+v, %v", lease, err)
		}
		second.drain()
	})
}

// TestStuckSequencer takes the writes of the table from a sequencer: what others ask of it
// does not pile up, and is refused.
func TestStuckSequencer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second := c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		p := foreign(t, topic, first)
		if _, err := second.append("a", p, "0"); err != nil {
			t.Fatal(err)
		}
		first.table.set(func(op metadata.Op, key metadata.Key) error {
			if op == metadata.OpPut {
				return fmt.Errorf("%w: it is out", metadata.ErrUnavailable)
			}
			return nil
		})
		ended := make(chan error, 100)
		for n := range 100 {
			go func() {
				_, err := second.append("a", p, fmt.Sprint(n))
				ended <- err
			}()
		}
		time.Sleep(time.Hour)
		s := first.tenure.Load().sequencer
		s.mu.Lock()
		waiting := len(s.queue)
		s.mu.Unlock()
		if waiting > 20 {
			t.Errorf("%d tickets wait", waiting)
		}
		if _, err := first.log.ListOffsets(t.Context(), &varvev1.ListOffsetsRequest{Topic: "a", Partitions: []int32{p}, Linearizable: true,
			Query: &varvev1.ListOffsetsRequest_Latest{Latest: true}}); err != nil {
			t.Errorf("the table still answers reads: %v", err)
		}
		first.table.clear()
		for range 100 {
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		}
		if n := len(second.values(t, "a", p)); n != 101 {
			t.Errorf("%d records", n)
		}
		first.drain()
		second.drain()
	})
}

// TestFenceInDoubt sets a fencing token through another gateway whose commit of it ends in doubt, and
// takes effect: that the condition no longer holds then is not told as a "no".
func TestFenceInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second, third := c.start(), c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		p := foreign(t, topic, first)
		if _, err := third.append("a", p, "x"); err != nil {
			t.Fatal(err)
		}
		first.table.set(func(op metadata.Op, key metadata.Key) error {
			if strings.HasPrefix(key.Partition, "journal/") { // nor does it begin again under another id
				return fmt.Errorf("%w: it is out", metadata.ErrUnavailable)
			}
			return nil
		})
		none, mine, theirs := "", "mine", "theirs"
		told := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			_, err := second.log.Fence(ctx, &varvev1.FenceRequest{Topic: "a", Partition: p, Token: mine, CurrentToken: &none})
			told <- err
		}()
		time.Sleep(500 * time.Millisecond)
		// Somebody else seals the journal, and sets a token of theirs.
		for _, m := range []*member{second, third} {
			m.members.bury(first.ID())
		}
		if err := third.members.seal(t.Context(), first.ID()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := third.log.Fence(ctx, &varvev1.FenceRequest{Topic: "a", Partition: p, Token: theirs}); err != nil {
			t.Fatal(err)
		}
		first.table.clear()
		if err := <-told; err != nil && !errors.Is(err, metadata.ErrUnknown) && !classify(err).info.GetUnknownOutcome() {
			t.Errorf("told as certain: %v", err)
		}
		second.drain()
		third.drain()
		first.kill()
	})
}

// TestOverdueInAQuietCluster closes the id of a gateway whose disk does not come back, although nobody
// comes or goes when that is due.
func TestOverdueInAQuietCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.CloseAfter = 24 * time.Hour
		first, second := c.start(), c.start()
		c.settle()
		id := first.ID()
		first.kill()
		time.Sleep(23 * time.Hour)
		if row, err := c.row(id); err != nil || row.State != metadata.GatewaySealed {
			t.Errorf("after 23 hours: %+v, %v", row, err)
		}
		time.Sleep(2 * time.Hour)
		if row, err := c.row(id); err != nil || row.State != metadata.GatewayClosed {
			t.Errorf("after 25 hours: %+v, %v", row, err)
		}
		second.drain()
	})
}

// row is a gateway's row.
func (c *testCluster) row(id metadata.GatewayID) (metadata.Gateway, error) {
	rows, err := metadata.ListGateways(c.t.Context(), c.d.Table, metadata.Strong, nil)
	for _, row := range rows {
		if row.ID == id {
			return row, nil
		}
	}
	return metadata.Gateway{}, errors.Join(err, metadata.ErrNotFound)
}

// TestStopWhileFenced stops a gateway that was taken for dead before it could begin again: what it had
// accepted is appended by the others, and it ends well.
func TestStopWhileFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second := c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		p := foreign(t, topic, first)
		first.table.set(func(op metadata.Op, key metadata.Key) error {
			if op == metadata.OpPut && strings.HasPrefix(key.Partition, "journal/") {
				return fmt.Errorf("%w: it is out", metadata.ErrUnavailable)
			}
			return nil
		})
		acked := make(chan error, 1)
		go func() {
			_, err := first.append("a", p, "x")
			acked <- err
		}()
		time.Sleep(100 * time.Millisecond)
		id := first.ID()
		second.members.bury(id)
		if err := second.members.seal(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(c.config.LeaseTime)
		if ready, why := first.Ready(); ready || first.ID() != id {
			t.Fatalf("%v, %s", ready, why)
		}
		first.drain()
		if err := <-acked; err != nil {
			t.Error(err)
		}
		if row, err := c.row(id); err != nil || row.State != metadata.GatewayClosed {
			t.Errorf("%+v, %v", row, err)
		}
		if got := second.values(t, "a", p); len(got) != 1 {
			t.Errorf("%v", got)
		}
		second.drain()
	})
}

// lateStream is a call of which the caller hears that nobody answers, and which arrives later.
type lateStream struct {
	connect.ClientStream
	arrive  func(request any)
	request any
}

func (s *lateStream) Send(msg any) error {
	s.request = proto.Clone(msg.(proto.Message))
	return nil
}

func (s *lateStream) Receive(any) error {
	s.arrive(s.request)
	return connect.NewError(connect.CodeUnavailable, "connection reset")
}

// lateTransport has the next decisions arrive late.
type lateTransport struct {
	connect.Transport
	late *atomic.Int64
	came *atomic.Bool
}

func (t lateTransport) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	s, err := t.Transport.NewClientStream(ctx, spec)
	if err != nil || !strings.HasSuffix(spec.Procedure, "/Decide") || t.late.Add(-1) < 0 {
		return s, err
	}
	return &lateStream{ClientStream: s, arrive: func(request any) {
		time.AfterFunc(5*time.Second, func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if again, err := t.Transport.NewClientStream(ctx, spec); err == nil && again.Send(request) == nil {
				t.came.Store(again.Receive(&peerv1.DecideResponse{}) == nil)
			}
		})
	}}, nil
}

// TestLateFence has a gateway's first try to set a fencing token arrive after its second one was answered, and after
// the next owner set a token: that one stays.
func TestLateFence(t *testing.T) {
	for _, current := range []*string{nil, new(string)} {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t)
			var late atomic.Int64
			var came atomic.Bool
			dial := c.network.Dial
			first := c.start()
			second := c.startWith(func(address string) connect.Transport { return lateTransport{dial(address), &late, &came} })
			topic := first.create(t, "a", clusterPartitions, nil)
			c.settle()
			p := foreign(t, topic, first)
			late.Store(1)
			fence := func(m *member, token string, current *string) {
				if _, err := m.log.Fence(t.Context(), &varvev1.FenceRequest{Topic: "a", Partition: p, Token: token, CurrentToken: current}); err != nil {
					t.Fatal(err)
				}
			}
			fence(second, "old", current)
			fence(first, "new", nil)
			time.Sleep(10 * time.Second)
			if v, err := first.viewNow(t.Context(), metadata.PartitionID{Topic: topic.ID, Number: p}); err != nil || v.Fence != "new" {
				t.Errorf("the token is %q, %v", v.Fence, err)
			}
			if late.Load() > 0 || !came.Load() {
				t.Error("nothing came late")
			}
			first.drain()
			second.drain()
		})
	}
}
