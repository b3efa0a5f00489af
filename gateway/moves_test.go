package gateway

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/go-cmp/cmp"

	peerv1 "github.com/varvelog/varve/api/varve/peer/v1"
	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments/batch"
)

// recorder keeps what gateways ask each other to judge, and the verdicts.
type recorder struct {
	mu    sync.Mutex
	asked []recorded
}

type recorded struct {
	reference *metadata.Reference
	verdict   metadata.Verdict
}

func (r *recorder) wrap(t connect.Transport) connect.Transport { return &recordedTransport{t, r} }

type recordedTransport struct {
	connect.Transport
	recorder *recorder
}

func (t *recordedTransport) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	s, err := t.Transport.NewClientStream(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &recordedStream{ClientStream: s, recorder: t.recorder}, nil
}

type recordedStream struct {
	connect.ClientStream
	recorder   *recorder
	references []*metadata.Reference
}

func (s *recordedStream) Send(msg any) error {
	if r, ok := msg.(*peerv1.ReferRequest); ok {
		s.references, _ = metadata.DecodeReferences(slices.Clone(r.GetReferences()))
	}
	return s.ClientStream.Send(msg)
}

func (s *recordedStream) Receive(msg any) error {
	err := s.ClientStream.Receive(msg)
	if r, ok := msg.(*peerv1.ReferResponse); ok && err == nil {
		for i, result := range r.GetResults() {
			if v, err := metadata.DecodeVerdict(result.GetVerdict()); err == nil && v.Status == metadata.Judged {
				s.recorder.mu.Lock()
				s.recorder.asked = append(s.recorder.asked, recorded{s.references[i], v})
				s.recorder.mu.Unlock()
			}
		}
	}
	return err
}

// idempotent appends one record as a producer would.
func (m *member) idempotent(partition int32, id int64, epoch int16, sequence int32) (*varvev1.ProduceResult, error) {
	b := batch.NewBuilder(batch.None)
	if err := b.Append(batch.Record{Timestamp: 1, Value: fmt.Append(nil, id, "/", epoch, "/", sequence)}); err != nil {
		return nil, err
	}
	data, err := b.Build(batch.BuildOptions{ProducerID: id, ProducerEpoch: epoch, BaseSequence: sequence})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := m.log.Produce(ctx, &varvev1.ProduceRequest{Topic: "a", Partition: &partition, RecordBatch: data})
	if err != nil {
		return nil, err
	}
	return out.GetResults()[0], nil
}

// reasonOf is the reason of an error, as clients see it.
func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	return classify(err).info.GetReason()
}

// TestStateMoves has a partition move from a gateway that dies, or leaves, to another one, and then
// asks the new owner about all that the old one had decided: producers' last five batches, the
// fencing token, uploaders' numbers and the answers on them.
func TestStateMoves(t *testing.T) {
	for _, killed := range []bool{true, false} {
		for _, checkpointed := range []bool{true, false} {
			t.Run(fmt.Sprintf("killed=%v,checkpointed=%v", killed, checkpointed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testStateMoves(t, killed, checkpointed) })
			})
		}
	}
}

func testStateMoves(t *testing.T, killed, checkpointed bool) {
	c := newTestCluster(t)
	if checkpointed {
		c.prepare = func(g *Gateway) { g.tenure.Load().sequencer.fold = foldLimits{rows: 1, bytes: 0, trim: 1} }
	}
	said := &recorder{}
	c.wrap = said.wrap
	first, second, third := c.start(), c.start(), c.start()
	topic := first.create(t, "a", 64, nil)
	c.settle()
	// A partition that goes from the first to the third, while the second uploads.
	p := int32(-1)
	for n := range topic.Partitions {
		id := metadata.PartitionID{Topic: topic.ID, Number: n}
		if first.members.winner(id) == first.ID() && metadata.Rendezvous(id, []metadata.GatewayID{second.ID(), third.ID()}) == third.ID() {
			p = n
		}
	}
	if p < 0 {
		t.Fatal("no partition moves as it should")
	}
	const producer, fenced, batches = 11, 12, 7
	var offsets []int64
	for sequence := range int32(batches) {
		out, err := second.idempotent(p, producer, 0, sequence)
		if err != nil || out.GetDuplicate() {
			t.Fatal(out, err)
		}
		offsets = append(offsets, out.GetBaseOffset())
	}
	for _, epoch := range []int16{3, 4} {
		if _, err := second.idempotent(p, fenced, epoch, 0); err != nil {
			t.Fatal(err)
		}
	}
	demanded := int64(batches + 2 + 1) // where the log will end only after the move
	conditional := func(m *member, expected *int64, token *string) error {
		_, err := m.log.Produce(t.Context(), &varvev1.ProduceRequest{Topic: "a", Partition: &p, ExpectedOffset: expected, FencingToken: token,
			Records: []*varvev1.Record{{Value: []byte("x")}}})
		return err
	}
	if got := reasonOf(conditional(second, &demanded, nil)); got != reasonOffsetMismatch {
		t.Fatal(got)
	}
	if _, err := second.log.Fence(t.Context(), &varvev1.FenceRequest{Topic: "a", Partition: p, Token: "mine"}); err != nil {
		t.Fatal(err)
	}
	before := second.values(t, "a", p)

	said.mu.Lock()
	asked := slices.Clone(said.asked)
	said.mu.Unlock()
	asked = slices.DeleteFunc(asked, func(r recorded) bool { return r.reference.Partition.Number != p || r.reference.Uploader != second.ID() })
	if len(asked) != batches+2+1 {
		t.Fatalf("%d references were judged", len(asked))
	}
	if killed {
		first.kill()
	} else {
		first.drain()
	}
	c.settle()

	// What was refused would fit by now, and what was accepted could be appended again. A few answers
	// are kept: this comes before the second gateway has more to ask.
	if at, err := third.append("a", p, "filler"); err != nil || at != demanded-1 {
		t.Fatal(at, err)
	}
	var references []*metadata.Reference
	for _, r := range asked {
		references = append(references, r.reference)
	}
	results, err := second.peers.refer(t.Context(), third.ID(), references)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if r.err != nil || r.verdict.Status != metadata.Repeated {
			t.Errorf("reference %d again: %+v, %v", references[i].Number, r.verdict, r.err)
		}
		if diff := cmp.Diff(asked[i].verdict.Batches, r.verdict.Batches); diff != "" {
			t.Errorf("reference %d gets another answer (-first +now):\n%s", references[i].Number, diff)
		}
	}
	for _, m := range []*member{second, third} {
		for sequence := batches - 5; sequence < batches; sequence++ {
			out, err := m.idempotent(p, producer, 0, int32(sequence))
			if err != nil || !out.GetDuplicate() || out.GetBaseOffset() != offsets[sequence] {
				t.Errorf("batch %d again: %v %v, want a duplicate at %d", sequence, out, err, offsets[sequence])
			}
		}
		for _, try := range []struct {
			id       int64
			epoch    int16
			sequence int32
			want     string
		}{
			{producer, 0, 0, reasonForgotten}, {producer, 0, batches + 1, reasonSequenceGap}, {fenced, 3, 1, reasonProducerFenced}, {13, 0, 4, reasonUnknownProducer},
		} {
			if out, err := m.idempotent(p, try.id, try.epoch, try.sequence); reasonOf(err) != try.want {
				t.Errorf("producer %d, epoch %d, sequence %d: %v %v, want %s", try.id, try.epoch, try.sequence, out, err, try.want)
			}
		}
		stale, mine := "stale", "mine"
		if got := reasonOf(conditional(m, nil, &stale)); got != reasonFenceMismatch {
			t.Errorf("another token: %q", got)
		}
		end := int64(len(m.values(t, "a", p)))
		if err := conditional(m, &end, &mine); err != nil {
			t.Errorf("the token: %v", err)
		}
	}
	if got, want := third.values(t, "a", p), append(slices.Clone(before), "filler", "x", "x"); !slices.Equal(got, want) {
		t.Errorf("the log has %q, want %q", got, want)
	}
	second.drain()
	third.drain()
}

// TestOneEntryACycle has all gateways append to partitions of one of them at once: what waits there is one
// journal entry, whoever it is from, and no payload travels between gateways.
func TestOneEntryACycle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rounds, size = 5, 100_000
		c := newTestCluster(t)
		c.config.CycleInterval = 50 * time.Millisecond
		members := []*member{c.start(), c.start(), c.start()}
		topic := members[0].create(t, "a", 64, nil)
		c.settle()
		own, _ := sharesOf(topic, members[0].ID(), members[1].ID(), members[2].ID())
		for _, p := range own { // it has them
			if _, err := members[0].append("a", p, "x"); err != nil {
				t.Fatal(err)
			}
		}
		meters := members[0].meters
		rows, references := meters.cycledRows.Load(), meters.cycledReferences.Load()
		value := string(make([]byte, size))
		for range rounds {
			time.Sleep(time.Second)
			var group sync.WaitGroup
			for _, m := range members {
				for _, p := range own {
					group.Go(func() {
						if _, err := m.append("a", p, value); err != nil {
							t.Error(err)
						}
					})
				}
			}
			group.Wait()
		}
		rows, references = meters.cycledRows.Load()-rows, meters.cycledReferences.Load()-references
		// The first append of a round is flushed at once, those that come with it go together; on a machine that
		// is busy some of those come a little later.
		if most := uint64(4 * rounds); rows > most || references < 10*rows {
			t.Errorf("%d journal entries, want up to %d, for %d references", rows, most, references)
		}
		for i, m := range members {
			if n := m.meters.peerBytes.Load(); n > size {
				t.Errorf("gateway %d sent and received %d bytes for %d of payload", i, n, rounds*len(own)*size)
			}
			m.drain()
		}
	})
}

// TestFencedEndsFollowers pauses a gateway for longer than the lease: those who follow by it are told to go
// elsewhere, and appends that it refuses may be tried again.
func TestFencedEndsFollowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second := c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		own, others := sharesOf(topic, first.ID(), second.ID())
		ended := make(chan error, 2)
		for _, p := range []int32{own[0], others[0]} {
			pos, err := first.place(t.Context(), topic, p, earliest(), nil, first.view)
			if err != nil {
				t.Fatal(err)
			}
			f := &consumer{g: first.Gateway, tenure: first.tenure.Load(), topic: topic, positions: []*position{pos}, maxBytes: 64 << 10,
				wake: make(chan struct{}, 1), send: func(*varvev1.ConsumeResponse) error { return nil }}
			go func() { ended <- f.run(t.Context(), nil) }()
		}
		gate := make(chan struct{})
		first.table.set(func(metadata.Op, metadata.Key) error {
			<-gate
			return nil
		})
		c.network.disconnect(first.address, true)
		time.Sleep(3 * c.config.LeaseTime)
		first.table.clear()
		close(gate)
		c.network.disconnect(first.address, false)
		for range 2 {
			select {
			case err := <-ended:
				if got := classify(err); got.code != connect.CodeUnavailable || !got.info.GetRetriable() || got.info.GetReason() != reasonFenced {
					t.Errorf("a follower is told %v", err)
				}
			case <-time.After(c.config.LeaseTime):
				t.Fatal("it goes on")
			}
		}
		c.settle()
		if err := first.appendWithin(t, time.Second, own[0], "x"); err != nil {
			t.Errorf("under its new id: %v", err)
		}
		first.drain()
		second.drain()
	})
}
