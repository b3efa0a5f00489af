package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	peerv1 "github.com/varvelog/varve/api/varve/peer/v1"
	"github.com/varvelog/varve/api/varve/peer/v1/peerv1connect"
	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
)

// Peers that are not what they seem, or do not do what they should.

// impostor is a peer that has a row in the table, with heartbeats, and its own ways of answering.
type impostor struct {
	id    metadata.GatewayID
	calls atomic.Int64
	// answer is asked for each unary answer, tell for what a Watch stream says at first.
	answer func(ctx context.Context, request any) (any, error)
	tell   func(stream peerv1connect.PeerServiceWatchServerStream) error
	leave  func()
	zone   string
}

// appear has it live in the cluster until it leaves. It begins by taking what is its own.
func (c *testCluster) appear(protocol uint32, i *impostor) {
	c.t.Helper()
	c.count++
	address := fmt.Sprintf("peer-%d:1", c.count)
	server := connect.NewServer()
	peerv1connect.RegisterPeerServiceHandler(server, i)
	c.network.set(address, server)
	i.id = metadata.NewGatewayID(time.Now())
	row, err := metadata.RegisterGateway(c.t.Context(), c.d.Table, metadata.Gateway{ID: i.id, Peer: address, Protocol: protocol, Zone: i.zone, Version: "impostor", Floor: 1})
	if err != nil {
		c.t.Fatal(err)
	}
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-over:
				return
			case <-time.After(c.config.LeaseTime / 3):
			}
			if err := row.Write(context.Background(), c.d.Table); err != nil {
				c.t.Errorf("the impostor was taken for dead: %v", err)
				return
			}
		}
	}()
	i.leave = func() {
		close(over)
		<-ended
		c.network.set(address, nil)
	}
}

func (i *impostor) ask(ctx context.Context, request any) (any, error) {
	i.calls.Add(1)
	return i.answer(ctx, request)
}

func (i *impostor) ReadBlock(ctx context.Context, r *peerv1.ReadBlockRequest) (*peerv1.ReadBlockResponse, error) {
	out, err := i.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	return out.(*peerv1.ReadBlockResponse), nil
}

func (i *impostor) Refer(ctx context.Context, r *peerv1.ReferRequest) (*peerv1.ReferResponse, error) {
	out, err := i.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	return out.(*peerv1.ReferResponse), nil
}

func (i *impostor) Decide(ctx context.Context, r *peerv1.DecideRequest) (*peerv1.DecideResponse, error) {
	out, err := i.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	return out.(*peerv1.DecideResponse), nil
}

func (i *impostor) Read(ctx context.Context, r *peerv1.ReadRequest) (*peerv1.ReadResponse, error) {
	out, err := i.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	return out.(*peerv1.ReadResponse), nil
}

func (i *impostor) Take(context.Context, *peerv1.TakeRequest) (*peerv1.TakeResponse, error) {
	i.calls.Add(1)
	return &peerv1.TakeResponse{}, nil
}

func (i *impostor) Note(context.Context, *peerv1.NoteRequest) (*peerv1.NoteResponse, error) {
	return &peerv1.NoteResponse{}, nil
}

func (i *impostor) Compact(context.Context, *peerv1.CompactRequest, peerv1connect.PeerServiceCompactServerStream) error {
	return nil
}

func (i *impostor) Acknowledge(context.Context, *peerv1.AcknowledgeRequest) (*peerv1.AcknowledgeResponse, error) {
	return &peerv1.AcknowledgeResponse{}, nil
}

func (i *impostor) Account(ctx context.Context, r *peerv1.AccountRequest) (*peerv1.AccountResponse, error) {
	out, err := i.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	return out.(*peerv1.AccountResponse), nil
}

func (i *impostor) Watch(ctx context.Context, stream peerv1connect.PeerServiceWatchServerStream) error {
	i.calls.Add(1)
	return i.tell(stream)
}

// sharesOf lists those that a gateway should sequence, when these live.
func sharesOf(topic *metadata.Topic, id metadata.GatewayID, living ...metadata.GatewayID) (own, others []int32) {
	for p := range topic.Partitions {
		if metadata.Rendezvous(metadata.PartitionID{Topic: topic.ID, Number: p}, append(living, id)) == id {
			own = append(own, p)
		} else {
			others = append(others, p)
		}
	}
	return own, others
}

// within runs a call and fails the test when it takes longer than it may.
func within(t *testing.T, most time.Duration, what string, call func(context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	began := time.Now()
	err := call(ctx)
	if took := time.Since(began); took > most {
		t.Errorf("%s took %s, %v", what, took, err)
	}
	return err
}

func (m *member) appendWithin(t *testing.T, most time.Duration, partition int32, value string) error {
	return within(t, most, "an append", func(ctx context.Context) error {
		_, err := m.log.Produce(ctx, &varvev1.ProduceRequest{Topic: "a", Partition: &partition, Records: []*varvev1.Record{{Value: []byte(value)}}})
		return err
	})
}

// TestStrangersAreRefused makes every call of the peer service as a gateway of another cluster, of
// another version, and to another gateway than this one.
func TestStrangersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.prepare = func(g *Gateway) { g.UseCompactor(&notebook{}) }
		c.config.Zone = "z"
		first := c.start()
		client := peerv1connect.NewPeerServiceClient(connect.NewClient(c.network.Dial(first.address)))
		calls := map[string]func(call *peerv1.Call) error{
			"Refer": func(call *peerv1.Call) error {
				_, err := client.Refer(t.Context(), &peerv1.ReferRequest{Call: call})
				return err
			},
			"Decide": func(call *peerv1.Call) error {
				_, err := client.Decide(t.Context(), &peerv1.DecideRequest{Call: call})
				return err
			},
			"Read": func(call *peerv1.Call) error {
				_, err := client.Read(t.Context(), &peerv1.ReadRequest{Call: call})
				return err
			},
			"Take": func(call *peerv1.Call) error {
				_, err := client.Take(t.Context(), &peerv1.TakeRequest{Call: call})
				return err
			},
			"Note": func(call *peerv1.Call) error {
				_, err := client.Note(t.Context(), &peerv1.NoteRequest{Call: call})
				return err
			},
			"Compact": func(call *peerv1.Call) error {
				stream, err := client.Compact(t.Context(), &peerv1.CompactRequest{Call: call, Wait: true})
				if err != nil {
					return err
				}
				defer stream.Close()
				_, err = stream.Receive()
				return err
			},
			"Acknowledge": func(call *peerv1.Call) error {
				_, err := client.Acknowledge(t.Context(), &peerv1.AcknowledgeRequest{Call: call})
				return err
			},
			"Account": func(call *peerv1.Call) error {
				_, err := client.Account(t.Context(), &peerv1.AccountRequest{Call: call})
				return err
			},
			"ReadBlock": func(call *peerv1.Call) error {
				_, err := client.ReadBlock(t.Context(), &peerv1.ReadBlockRequest{Call: call, Zone: "z"})
				return err
			},
			"Watch": func(call *peerv1.Call) error {
				stream, err := client.Watch(t.Context())
				if err != nil {
					return err
				}
				defer stream.Close()
				if err := stream.Send(&peerv1.WatchRequest{Call: call}); err != nil {
					return err
				}
				if err := stream.CloseSend(); err != nil { // who is welcome hears an end
					return err
				}
				_, err = stream.Receive()
				return err
			},
		}
		methods := peerv1.File_varve_peer_v1_peer_proto.Services().ByName("PeerService").Methods()
		if methods.Len() != len(calls) {
			t.Errorf("the service has %d methods, here are %d", methods.Len(), len(calls))
		}
		right := func() *peerv1.Call {
			return &peerv1.Call{ClusterId: first.ClusterID(), From: "g1", To: string(first.ID()), Protocol: peerProtocol}
		}
		for name, do := range calls {
			if err := do(right()); connect.CodeOf(err) == connect.CodeFailedPrecondition {
				t.Errorf("%s: a call as it should be is refused: %v", name, err)
			}
			for wrong, change := range map[string]func(*peerv1.Call){
				"another cluster": func(c *peerv1.Call) { c.ClusterId = "another cluster" },
				"no cluster":      func(c *peerv1.Call) { c.ClusterId = "" },
				"version 9":       func(c *peerv1.Call) { c.Protocol = 9 },
				"no version":      func(c *peerv1.Call) { c.Protocol = 0 },
				"g9":              func(c *peerv1.Call) { c.To = "g9" },
				"nobody":          func(c *peerv1.Call) { c.To = "" },
			} {
				call := right()
				change(call)
				err := do(call)
				if connect.CodeOf(err) != connect.CodeFailedPrecondition {
					t.Errorf("%s, %s: %v", name, wrong, err)
				} else if !strings.HasPrefix(wrong, "no") && !strings.Contains(err.Error(), wrong) {
					t.Errorf("%s, %s: the error does not say so: %v", name, wrong, err)
				}
			}
			if err := do(nil); connect.CodeOf(err) != connect.CodeFailedPrecondition {
				t.Errorf("%s by nobody: %v", name, err)
			}
		}
		first.drain()
	})
}

// TestTwoGatewaysWithOneAddress starts a second gateway under the address of the first: what is meant
// for one is never taken by the other, and when it has gone all goes on.
func TestTwoGatewaysWithOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		log := c.keepLog()
		first := c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		for p := range topic.Partitions {
			if _, err := first.append("a", p, "before"); err != nil {
				t.Fatal(err)
			}
		}
		c.count-- // the address is given a second time
		second := c.start()
		if second.address != first.address {
			t.Fatal("they have addresses of their own")
		}
		c.settle()
		mine, others := sharesOf(topic, first.ID(), second.ID())
		if len(mine) == 0 || len(others) == 0 {
			t.Fatal("one of them has everything")
		}
		if err := first.appendWithin(t, time.Second, mine[0], "by its sequencer"); err != nil {
			t.Error(err)
		}
		if err := second.appendWithin(t, time.Second, others[0], "by its sequencer"); err != nil {
			t.Error(err)
		}
		for _, p := range mine {
			err := second.appendWithin(t, 10*time.Second, p, "by the other one")
			if !classify(err).info.GetUnknownOutcome() {
				t.Errorf("an append that cannot be judged: %v", err)
			}
		}
		if got := log.with("level=WARN", "its address is used by this one now", string(first.ID())); len(got) == 0 {
			t.Error("nobody says what is wrong")
		}
		second.kill()
		c.network.set(first.address, first.PeerServer())
		c.settle()
		for p := range topic.Partitions {
			if _, err := first.append("a", p, "after"); err != nil {
				t.Error(err)
			}
			seen := make(map[string]int)
			for _, v := range first.values(t, "a", p) {
				if seen[v]++; seen[v] > 1 {
					t.Errorf("partition %d has %q twice", p, v)
				}
			}
			if seen["before"] != 1 || seen["after"] != 1 {
				t.Errorf("partition %d has %v", p, seen)
			}
		}
		first.drain()
	})
}

// TestPeerOfAnotherVersion has a gateway come that speaks another version to its peers: those that
// are there go on with all partitions, and say what is wrong once it matters.
func TestPeerOfAnotherVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second := c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		for p := range topic.Partitions {
			if _, err := second.append("a", p, "before"); err != nil {
				t.Fatal(err)
			}
		}
		newer := &impostor{answer: func(context.Context, any) (any, error) { return nil, errors.New("called") },
			tell: func(peerv1connect.PeerServiceWatchServerStream) error { return errors.New("called") }}
		c.appear(peerProtocol+1, newer)
		c.settle()
		own, _ := sharesOf(topic, newer.id, first.ID(), second.ID())
		if len(own) == 0 {
			t.Fatal("it would get nothing")
		}
		for p := range topic.Partitions {
			for _, m := range []*member{first, second} {
				if err := m.appendWithin(t, time.Second, p, "beside it"); err != nil {
					t.Errorf("partition %d: %v", p, err)
				}
			}
		}
		if n := newer.calls.Load(); n != 0 {
			t.Errorf("it was called %d times", n)
		}
		_, err := first.peers.refer(t.Context(), newer.id, nil)
		if !errors.Is(err, errUnreachable) || !strings.Contains(err.Error(), fmt.Sprintf("version %d", peerProtocol+1)) {
			t.Errorf("a call to it: %v", err)
		}
		newer.leave()
		first.drain()
		second.drain()
	})
}

// hold makes a released lease of a partition for the impostor, as if it had taken it.
func (i *impostor) hold(t *testing.T, table metadata.Table, topic *metadata.Topic, partitions []int32) {
	t.Helper()
	journal, err := metadata.OpenJournal(t.Context(), table, i.id)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range partitions {
		_, _, err := metadata.Acquire(t.Context(), table, metadata.PartitionID{Topic: topic.ID, Number: p}, journal,
			func(context.Context, metadata.GatewayID) (*metadata.SealedJournal, error) {
				return nil, metadata.ErrHeld
			})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestPeerAnswersGarbage has a gateway that sequences partitions answer everything with what makes no
// sense: the calls of clients end in time with honest answers, and once it is gone everything
// that was under way lands, once.
func TestPeerAnswersGarbage(t *testing.T) {
	accepted := metadata.BatchVerdict{Outcome: metadata.Accepted, Actual: metadata.NoOffset}
	verdict := metadata.EncodeVerdict(metadata.Verdict{Status: metadata.Judged, Next: 3, Batches: []metadata.BatchVerdict{accepted, accepted, accepted}}) // on three batches
	garbage := [][]byte{nil, {0xff, 0xff}, verdict, verdict[:len(verdict)-1], []byte("garbage that is a little longer than the rest")}
	refusals := []*peerv1.Refusal{{Kind: 99}, {Kind: peerv1.Refusal_KIND_ELSEWHERE, Holder: "g9"}, {Kind: peerv1.Refusal_KIND_ELSEWHERE}}
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first := c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		var n atomic.Int64
		next := func() int { return int(n.Add(1)) }
		liar := &impostor{}
		liar.answer = func(_ context.Context, request any) (any, error) {
			i := next()
			switch r := request.(type) {
			case *peerv1.ReferRequest:
				references, _ := metadata.DecodeReferences(r.GetReferences())
				out := &peerv1.ReferResponse{}
				for range references {
					out.Results = append(out.Results, &peerv1.ReferResult{Verdict: garbage[i%len(garbage)]})
				}
				switch i % 7 {
				case 0:
					out.Results = nil
				case 1:
					out.Results = append(out.Results, nil)
				case 2:
					out.Results[0] = nil
				case 3:
					out.Results[0] = &peerv1.ReferResult{Refusal: refusals[i%len(refusals)]}
				}
				return out, nil
			case *peerv1.DecideRequest:
				return &peerv1.DecideResponse{View: garbage[i%len(garbage)]}, nil
			}
			return &peerv1.ReadResponse{View: garbage[i%len(garbage)]}, nil
		}
		liar.tell = func(stream peerv1connect.PeerServiceWatchServerStream) error {
			request, err := stream.Receive()
			if err != nil {
				return err
			}
			i := next()
			updates := []*peerv1.Update{nil, {Partition: &peerv1.Partition{Topic: []byte("abc")}}, {Partition: &peerv1.Partition{Topic: make([]byte, 16), Number: -1}}}
			for _, begin := range request.GetBegin() {
				updates = append(updates, &peerv1.Update{Partition: begin.GetPartition(), View: garbage[i%len(garbage)]},
					&peerv1.Update{Partition: begin.GetPartition(), Delta: garbage[i%len(garbage)]})
			}
			return stream.Send(&peerv1.WatchResponse{Updates: updates[i%len(updates):]})
		}
		c.appear(peerProtocol, liar)
		own, others := sharesOf(topic, liar.id, first.ID())
		liar.hold(t, c.d.Table, topic, own)
		c.settle()
		const patience = 8 * time.Second
		refused := make(map[string]bool)
		for round := range 3 {
			for _, p := range own[:min(len(own), 3)] {
				err := first.appendWithin(t, patience, p, fmt.Sprint(round))
				if got := classify(err); got == nil || got.code != connect.CodeUnavailable {
					t.Errorf("an append that nobody judged: %v", err)
				} else if !got.info.GetUnknownOutcome() {
					refused[fmt.Sprint(p, "/", round)] = true
				}
				_ = within(t, patience, "a read", func(ctx context.Context) error {
					out, err := first.log.ListOffsets(ctx, &varvev1.ListOffsetsRequest{Topic: "a", Partitions: []int32{p}, Linearizable: round%2 == 0})
					if err != nil || out.GetOffsets()[0].GetEndOffset() != 0 {
						t.Errorf("a read: %v %v", out, err)
					}
					return err
				})
				err = within(t, patience, "a fence", func(ctx context.Context) error {
					_, err := first.log.Fence(ctx, &varvev1.FenceRequest{Topic: "a", Partition: p, Token: "x"})
					return err
				})
				if err == nil {
					t.Error("a token was set by nobody")
				}
			}
			for _, p := range others {
				if err := first.appendWithin(t, time.Second, p, fmt.Sprint(round)); err != nil {
					t.Errorf("the partition of another gateway: %v", err)
				}
			}
		}
		if liar.calls.Load() < 20 {
			t.Errorf("it was called %d times: this proves nothing", liar.calls.Load())
		}
		liar.leave()
		c.settle()
		for p := range topic.Partitions {
			if _, err := first.append("a", p, "after"); err != nil {
				t.Errorf("partition %d: %v", p, err)
			}
		}
		for _, p := range own[:min(len(own), 3)] {
			var want []string
			for round := range 3 {
				if !refused[fmt.Sprint(p, "/", round)] {
					want = append(want, fmt.Sprint(round))
				}
			}
			if got := first.values(t, "a", p); len(want) == 0 || !slices.Equal(got, append(want, "after")) {
				t.Errorf("partition %d has %q, want %q", p, got, want)
			}
		}
		if n := first.meters.panics.Load(); n != 0 {
			t.Errorf("%d panics", n)
		}
		first.drain()
	})
}

// TestPeerSaysNothing has a gateway that sequences partitions take calls and never answer: each call of a
// client ends within its time, reads with what the table has.
func TestPeerSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first := c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		silent := &impostor{
			answer: func(ctx context.Context, _ any) (any, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
			tell: func(stream peerv1connect.PeerServiceWatchServerStream) error {
				for {
					if _, err := stream.Receive(); err != nil {
						return err
					}
				}
			},
		}
		c.appear(peerProtocol, silent)
		own, others := sharesOf(topic, silent.id, first.ID())
		silent.hold(t, c.d.Table, topic, own)
		c.settle()
		p := own[0]
		if err := first.appendWithin(t, 10*time.Second, p, "x"); !classify(err).info.GetUnknownOutcome() {
			t.Errorf("an append that nobody judged: %v", err)
		}
		for _, linearizable := range []bool{false, true} {
			err := within(t, peerTime+time.Second, "a read", func(ctx context.Context) error {
				out, err := first.log.Fetch(ctx, &varvev1.FetchRequest{Topic: "a", Partition: p, Linearizable: linearizable})
				if err == nil && out.GetHighWatermark() != 0 {
					t.Errorf("the log ends at %d", out.GetHighWatermark())
				}
				return err
			})
			if err != nil {
				t.Errorf("a read: %v", err)
			}
		}
		if err := within(t, 10*time.Second, "a fence", func(ctx context.Context) error {
			_, err := first.log.Fence(ctx, &varvev1.FenceRequest{Topic: "a", Partition: p, Token: "x"})
			return err
		}); err == nil {
			t.Error("a token was set by nobody")
		}
		for _, p := range others {
			if err := first.appendWithin(t, time.Second, p, "x"); err != nil {
				t.Errorf("the partition of another gateway: %v", err)
			}
		}
		silent.leave()
		c.settle()
		if _, err := first.append("a", p, "after"); err != nil {
			t.Error(err)
		}
		if got := first.values(t, "a", p); fmt.Sprint(got) != "[x after]" {
			t.Errorf("it has %q", got)
		}
		first.drain()
	})
}
