package gateway

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// As in package metadata: one test for each interleaving that an odd-looking rule of the design
// exists for, where the rule is the gateway's.

// judged has a gateway judge a reference of an uploader's first segment.
func (m *member) judged(t *testing.T, id metadata.PartitionID, uploader metadata.GatewayID) (metadata.Verdict, error) {
	t.Helper()
	ref := &metadata.Reference{Partition: id, Uploader: uploader, Number: 1,
		Batches: []metadata.Batch{{Size: 100, Offsets: 1, Records: 1, ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}}}
	type answer struct {
		verdict metadata.Verdict
		err     error
	}
	got := make(chan answer, 1)
	s := m.tenure.Load().sequencer
	s.submit(s.refer(ref, nil, func(v metadata.Verdict, err error) { got <- answer{v, err} }))
	a := <-got
	return a.verdict, a.err
}

// stranger is an uploader that sequences nothing: another gateway took it for dead.
func (c *testCluster) stranger(id metadata.GatewayID) {
	c.t.Helper()
	if _, err := metadata.RegisterGateway(c.t.Context(), c.d.Table, metadata.Gateway{ID: id, Protocol: peerProtocol}); err != nil {
		c.t.Fatal(err)
	}
	if err := metadata.MarkSealed(c.t.Context(), c.d.Table, id, time.Now()); err != nil {
		c.t.Fatal(err)
	}
}

// TestAnswersOfAPausedOwner: "no answer ever comes from unsettled or fenced state", one that rests
// on no entry of its own neither. The owner does not know yet that another gateway took over.
func TestAnswersOfAPausedOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.LeaseTime = time.Minute // no heartbeat tells it
		paused := c.start()
		topic := paused.create(t, "a", 1, nil)
		if _, err := paused.append("a", 0, "0"); err != nil {
			t.Fatal(err)
		}
		table := c.d.Table
		journal, err := metadata.OpenJournal(t.Context(), table, "taker")
		if err != nil {
			t.Fatal(err)
		}
		sealed := func(ctx context.Context, id metadata.GatewayID) (*metadata.SealedJournal, error) {
			if _, err := metadata.Seal(ctx, table, id, "taker"); err != nil {
				return nil, err
			}
			return metadata.ReadSealed(ctx, table, id)
		}
		state, _, err := metadata.Acquire(t.Context(), table, metadata.PartitionID{Topic: topic.ID}, journal, sealed)
		if err != nil {
			t.Fatal(err)
		}
		token := "the taker's"
		change, err := state.JudgeFence(token, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		entry := metadata.NewEntryBuilder(time.Now())
		entry.Add(change)
		if _, err := journal.Append(t.Context(), entry.Encode()); err != nil {
			t.Fatal(err)
		}
		// A refusal about what was true before the takeover.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = paused.log.Fence(ctx, &varvev1.FenceRequest{Topic: "a", Token: "next", CurrentToken: &token})
		if code := connect.CodeOf(classified(err)); code == connect.CodeAborted || code == connect.CodeFailedPrecondition {
			t.Errorf("it refuses by what it knows: %v", err)
		}
		paused.kill()
	})
}

// TestReadsOfAPausedOwner: a linearizable read is answered by who makes sure that nobody has
// taken over.
func TestReadsOfAPausedOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.LeaseTime = time.Minute
		paused := c.start()
		topic := paused.create(t, "a", 1, nil)
		if _, err := paused.append("a", 0, "0"); err != nil {
			t.Fatal(err)
		}
		if _, err := metadata.Seal(t.Context(), c.d.Table, paused.ID(), "taker"); err != nil {
			t.Fatal(err)
		}
		p := paused.partitions.get(metadata.PartitionID{Topic: topic.ID})
		if !p.owned.Load() {
			t.Fatal("it has heard of its end already: this run proves nothing")
		}
		if v, err := paused.readHere(t.Context(), p.id); err == nil && v == p.view.Load() {
			t.Error("it shows what it knows although its journal is sealed")
		}
		paused.kill()
	})
}

// TestLateReferenceOfAClosedUploader: "sequencers refuse closed uploaders", since a partition may
// have forgotten what it had taken of one.
func TestLateReferenceOfAClosedUploader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.FoldRows, c.config.FoldBytes = 1, 1
		c.stranger("u")
		m := c.start()
		id := metadata.PartitionID{Topic: m.create(t, "a", 1, nil).ID}
		if v, err := m.judged(t, id, "u"); err != nil || v.Status != metadata.Judged {
			t.Fatalf("%+v %v", v, err)
		}
		if err := metadata.MarkClosed(t.Context(), c.d.Table, "u"); err != nil {
			t.Fatal(err)
		}
		c.settle()
		for range 5 { // a checkpoint forgets it
			if _, err := m.append("a", 0, "x"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if _, err := m.judged(t, id, "u"); err == nil {
			t.Error("a late reference of a closed uploader is judged")
		}
		m.drain()
	})
}

// TestTakerKnowsOfClosings: "whoever takes a partition reads the gateways' rows after the lease
// row, before it judges: so it knows of every closing that the row's forgetting rests on".
func TestTakerKnowsOfClosings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.LeaseTime = 10 * time.Minute // they look at each other's rows seldom
		c.stranger("u")
		first := c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		for p := range int32(clusterPartitions) {
			if v, err := first.judged(t, metadata.PartitionID{Topic: topic.ID, Number: p}, "u"); err != nil || v.Status != metadata.Judged {
				t.Fatalf("%+v %v", v, err)
			}
		}
		second := c.start() // it sees the uploader not closed
		if err := metadata.MarkClosed(t.Context(), c.d.Table, "u"); err != nil {
			t.Fatal(err)
		}
		moves := metadata.PartitionID{Topic: topic.ID, Number: foreign(t, topic, second)}
		if err := first.members.refresh(t.Context()); err != nil { // it sees both, and hands over
			t.Fatal(err)
		}
		for p := second.partitions.get(moves); !p.owned.Load(); {
			time.Sleep(100 * time.Millisecond)
		}
		if _, err := second.judged(t, moves, "u"); err == nil {
			t.Error("the new owner judges again what the old one had taken and forgotten")
		}
		first.drain()
		second.drain()
	})
}

// TestReadersSeeNothingUncommitted: views are published when the entry that they rest on is settled.
func TestReadersSeeNothingUncommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		m := c.start()
		topic := m.create(t, "a", 1, nil)
		if _, err := m.append("a", 0, "0"); err != nil {
			t.Fatal(err)
		}
		gate := make(chan struct{})
		own := "journal/" + string(m.ID())
		m.table.set(func(op metadata.Op, key metadata.Key) error {
			if op == metadata.OpPut && key.Partition == own {
				<-gate
			}
			return nil
		})
		done := make(chan error, 1)
		go func() {
			_, err := m.append("a", 0, "1")
			done <- err
		}()
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		v, err := m.view(t.Context(), metadata.PartitionID{Topic: topic.ID})
		if err != nil || v.Next != 1 {
			t.Errorf("readers see the end at %d (%v) while the second append is on its way", v.Next, err)
		}
		m.table.clear()
		close(gate)
		if err := <-done; err != nil {
			t.Error(err)
		}
		m.drain()
	})
}

// TestMissingObject: an object that is gone is a loss with a place, never a skip and never empty.
func TestMissingObject(t *testing.T) {
	d := memory()
	g := startGateway(t, Config{Exclusive: true, FreshBytes: 1}, d)
	g.create(t, "a", 1, nil)
	for n := range 3 {
		g.produce(t, "a", 0, batch.Record{Timestamp: int64(n)})
	}
	key := segments.ObjectKey(segments.ClusterID(g.ClusterID()), segments.GatewayID(g.ID()), 2)
	if err := d.Store.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	place := earliest()
	for range 3 {
		out, err := g.log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a", Start: place, Decode: true})
		if err != nil {
			if code := connect.CodeOf(classified(err)); code != connect.CodeDataLoss {
				t.Errorf("%v", err)
			}
			return
		}
		if out.GetNextOffset() > 1 {
			t.Fatalf("it leads past the missing record, to %d", out.GetNextOffset())
		}
		place = &varvev1.Place{At: &varvev1.Place_Offset{Offset: out.GetNextOffset()}}
	}
	t.Error("no error")
}

// TestNothingIsJudgedAfterAReleaseInDoubt: a gateway that does not know whether it released a
// partition, and finds another owner's row there, judges nothing more under its id.
func TestNothingIsJudgedAfterAReleaseInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		table := &afterTable{Table: c.d.Table}
		c.d.Table = table
		first := c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		for p := range int32(clusterPartitions) {
			if _, err := first.append("a", p, "0"); err != nil {
				t.Fatal(err)
			}
		}
		id, second := first.ID(), c.start()
		doubted := make(chan struct{}, 1)
		lost := func(row metadata.Row) error {
			if row.Sort != "lease" || row.Stamp != (metadata.Stamp{Epoch: 1, Sequence: 2}) {
				return nil
			}
			defer func() {
				select {
				case doubted <- struct{}{}:
				default:
				}
			}()
			// The other one takes it before the answer is missed.
			p, _ := strconv.ParseInt(row.Partition[strings.LastIndex(row.Partition, "/")+1:], 10, 32)
			moved := metadata.PartitionID{Topic: topic.ID, Number: int32(p)}
			second.tenure.Load().sequencer.submit(&ticket{partition: moved, done: func(metadata.Verdict, error) {},
				decide: func(*metadata.Partition) (metadata.Verdict, *metadata.Change, error) {
					return metadata.Verdict{Status: metadata.Judged}, nil, nil
				}})
			time.Sleep(300 * time.Millisecond)
			return fmt.Errorf("%w: answer lost", metadata.ErrUnknown)
		}
		table.after.Store(&lost)
		<-doubted
		time.Sleep(checkpointPause / 2) // the next checkpoint would tell it
		if first.ID() == id {
			t.Error("it goes on under its id")
		}
		first.kill()
		second.kill()
	})
}
