package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
)

// testNetwork connects gateways in one process.
type testNetwork struct {
	mu      sync.Mutex
	servers map[string]*connect.Server
	cut     map[string]bool // addresses that nobody reaches
}

func newTestNetwork() *testNetwork {
	return &testNetwork{servers: make(map[string]*connect.Server), cut: make(map[string]bool)}
}

func (n *testNetwork) Dial(address string) connect.Transport { return &testTransport{n, address} }

func (n *testNetwork) set(address string, s *connect.Server) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.servers[address] = s
}

func (n *testNetwork) disconnect(address string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[address] = cut
}

type testTransport struct {
	network *testNetwork
	address string
}

func (t *testTransport) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	t.network.mu.Lock()
	server, cut := t.network.servers[t.address], t.network.cut[t.address]
	t.network.mu.Unlock()
	if server == nil || cut {
		return nil, connect.NewError(connect.CodeUnavailable, "no route to "+t.address)
	}
	return connectinprocess.New(server).NewClientStream(ctx, spec)
}

// testCluster is gateways that share a bucket and a table.
type testCluster struct {
	t       *testing.T
	network *testNetwork
	d       Dependencies
	config  Config
	count   int
	log     *slog.Logger
	// wrap, if set, stands around the ways to peers; prepare has its way with gateways that start.
	wrap    func(connect.Transport) connect.Transport
	prepare func(*Gateway)
}

func newTestCluster(t *testing.T) *testCluster {
	return &testCluster{t: t, network: newTestNetwork(), d: memory(), config: Config{LeaseTime: 2 * time.Second, DrainTime: 10 * time.Second},
		log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

// member is a gateway of a test cluster.
type member struct {
	*runningGateway
	cluster *testCluster
	address string
	life    *life
	table   *hookedTable
	// closeDisk gives its disk back, should it have one.
	closeDisk func()
}

func (c *testCluster) start() *member { return c.startWith(c.dial) }

func (c *testCluster) startWith(dial func(string) connect.Transport) *member {
	c.t.Helper()
	c.count++
	m := &member{cluster: c, address: fmt.Sprintf("peer-%d:1", c.count), life: &life{}}
	config, d := c.config, c.d
	config.PeerAddress = m.address
	d.Dial = dial
	m.table = &hookedTable{Table: mortalTable{d.Table, m.life}}
	d.Table = m.table
	d.Store = mortalStore{d.Store, m.life}
	d.Log = c.log.With("member", c.count)
	m.runningGateway = runGatewayWith(c.t, config, d, func(g *Gateway) {
		if c.prepare != nil {
			c.prepare(g)
		}
		c.network.set(m.address, g.PeerServer())
	})
	return m
}

func (c *testCluster) dial(address string) connect.Transport {
	if c.wrap != nil {
		return c.wrap(c.network.Dial(address))
	}
	return c.network.Dial(address)
}

// kill ends it in the middle of things.
func (m *member) kill() {
	m.cluster.network.set(m.address, nil)
	m.crash(m.life)
}

// drain ends it in good order.
func (m *member) drain() {
	m.cluster.t.Helper()
	m.leave()
	if err := <-m.ended; err != nil {
		m.cluster.t.Errorf("it did not end well: %v", err)
	}
	m.cluster.network.set(m.address, nil)
}

// settle lets gateways see each other.
func (c *testCluster) settle() { time.Sleep(2 * c.config.LeaseTime) }

// append waits for a minute at most, so that a test in which nobody answers ends.
func (m *member) append(topic string, partition int32, value string) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := m.log.Produce(ctx, &varvev1.ProduceRequest{Topic: topic, Partition: &partition,
		Records: []*varvev1.Record{{Value: []byte(value)}}})
	if err != nil {
		return 0, err
	}
	return out.GetResults()[0].GetBaseOffset(), nil
}

// values reads a partition through a member.
func (m *member) values(t *testing.T, topic string, partition int32) []string {
	t.Helper()
	var list []string
	for i, r := range m.readAll(t, topic, partition) {
		if r.GetOffset() != int64(i) {
			t.Errorf("partition %d: record %d has offset %d", partition, i, r.GetOffset())
		}
		list = append(list, string(r.GetValue()))
	}
	return list
}

// clusterPartitions are so many that each of three gateways mostly has some; create sees to it.
const clusterPartitions = 12

// create makes a topic. Of one of clusterPartitions each gateway that lives by now and sequences will have some: by chance alone three would
// leave one of them without any in one run of forty.
func (m *member) create(t *testing.T, name string, partitions int32, set map[string]string) *metadata.Topic {
	t.Helper()
	topic := m.runningGateway.create(t, name, partitions, set)
	for partitions == clusterPartitions && !m.cluster.shared(topic) {
		// Nobody has asked for it yet: it goes without a trace, and the next one has another id.
		if err := m.cluster.d.Table.Delete(t.Context(), metadata.Key{Partition: "topics", Sort: name}, metadata.Condition{}); err != nil {
			t.Fatal(err)
		}
		topic = m.runningGateway.create(t, name, partitions, set)
	}
	return topic
}

// shared says whether each gateway wins a partition of a topic.
func (c *testCluster) shared(topic *metadata.Topic) bool {
	c.t.Helper()
	rows, err := metadata.ListGateways(c.t.Context(), c.d.Table, metadata.Strong, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	var living []metadata.GatewayID
	for _, g := range rows {
		if g.State == metadata.GatewayLive && g.Role != metadata.RoleCompactor {
			living = append(living, g.ID)
		}
	}
	winners := make(map[metadata.GatewayID]bool)
	for _, id := range allPartitions(topic) {
		winners[metadata.Rendezvous(id, living)] = true
	}
	return len(winners) == len(living)
}

// TestAnyGateway appends and reads every partition through every gateway.
func TestAnyGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		members := []*member{c.start(), c.start(), c.start()}
		members[0].create(t, "a", clusterPartitions, nil)
		c.settle()
		for round := range 3 {
			for i, m := range members {
				for p := range int32(clusterPartitions) {
					at, err := m.append("a", p, fmt.Sprint(round, i))
					if err != nil || at != int64(3*round+i) {
						t.Fatalf("round %d, gateway %d, partition %d: offset %d, %v", round, i, p, at, err)
					}
				}
			}
		}
		owners := make(map[metadata.GatewayID]int)
		for i, m := range members {
			for p := range int32(clusterPartitions) {
				if got := m.values(t, "a", p); len(got) != 9 || got[4] != "1 1" {
					t.Errorf("gateway %d, partition %d: %v", i, p, got)
				}
			}
			m.partitions.mu.Lock()
			for _, p := range m.partitions.list {
				if p.owned.Load() {
					owners[m.ID()]++
				}
			}
			m.partitions.mu.Unlock()
		}
		total := 0
		for _, n := range owners {
			total += n
		}
		if len(owners) != len(members) || total != clusterPartitions {
			t.Errorf("partitions by sequencer: %v", owners)
		}
		for _, m := range members {
			m.drain()
		}
	})
}

// load appends to all partitions through whoever serves, until it is told to end.
type load struct {
	t        *testing.T
	mu       sync.Mutex
	through  []*member
	acked    map[string]place
	failed   atomic.Int64
	slowest  time.Duration
	tolerate func(error) bool
	done     chan struct{}
	group    sync.WaitGroup
}

func startLoad(t *testing.T, through ...*member) *load {
	l := &load{t: t, through: through, acked: make(map[string]place), done: make(chan struct{})}
	for p := range int32(clusterPartitions) {
		l.group.Go(func() { l.run(p) })
	}
	return l
}

func (l *load) use(through ...*member) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.through = through
}

func (l *load) run(partition int32) {
	for n := 0; ; n++ {
		select {
		case <-l.done:
			return
		case <-time.After(20 * time.Millisecond):
		}
		l.mu.Lock()
		m := l.through[(n+int(partition))%len(l.through)]
		l.mu.Unlock()
		value := fmt.Sprint(partition, "/", n)
		began := time.Now()
		at, err := m.append("a", partition, value)
		l.mu.Lock()
		if err != nil {
			l.failed.Add(1)
			if l.tolerate == nil || !l.tolerate(err) {
				l.t.Errorf("append %s: %v", value, err)
			}
		} else {
			l.acked[value] = place{partition, at}
			l.slowest = max(l.slowest, time.Since(began))
		}
		l.mu.Unlock()
	}
}

func (l *load) stop() {
	close(l.done)
	l.group.Wait()
}

// check reads all through a member: what was acked is where it was said to be, once.
func (l *load) check(m *member) {
	l.t.Helper()
	seen := make(map[string]int)
	for p := range int32(clusterPartitions) {
		for at, value := range m.values(l.t, "a", p) {
			seen[value]++
			if want, ok := l.acked[value]; ok && want != (place{p, int64(at)}) {
				l.t.Errorf("%s was acked at %v, it is at %d of %d", value, want, at, p)
			}
		}
	}
	for value := range l.acked {
		if seen[value] != 1 {
			l.t.Errorf("%s was acked and is there %d times", value, seen[value])
		}
	}
	l.t.Logf("%d acked, %d failed, the slowest ack took %s", len(l.acked), l.failed.Load(), l.slowest)
}

// TestComeAndGo adds gateways and removes them in good order under load: no request fails.
func TestComeAndGo(t *testing.T) {
	for _, slow := range []bool{false, true} {
		t.Run(fmt.Sprintf("slow=%v", slow), func(t *testing.T) { testComeAndGo(t, slow) })
	}
}

func testComeAndGo(t *testing.T, slow bool) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		if slow { // what is to happen while a partition is released can
			c.d.Table = &leaseTable{Table: c.d.Table, around: func(call func() error) error {
				time.Sleep(50 * time.Millisecond)
				defer time.Sleep(50 * time.Millisecond)
				return call()
			}}
		}
		first := c.start()
		first.create(t, "a", clusterPartitions, nil)
		l := startLoad(t, first)
		time.Sleep(time.Second)
		second := c.start()
		l.use(first, second)
		time.Sleep(5 * time.Second)
		third := c.start()
		l.use(first, second, third)
		time.Sleep(5 * time.Second)
		l.use(second, third)
		time.Sleep(time.Second)
		first.drain()
		time.Sleep(5 * time.Second)
		l.use(third)
		time.Sleep(time.Second)
		second.drain()
		time.Sleep(5 * time.Second)
		l.stop()
		l.check(third)
		if l.slowest > time.Second {
			t.Errorf("an append took %s", l.slowest)
		}
		third.drain()
	})
}

// TestTakeOver kills a gateway under load through the others: what was acked is there,
// and appends succeed again soon.
func TestTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second, third := c.start(), c.start(), c.start()
		first.create(t, "a", clusterPartitions, nil)
		c.settle()
		l := startLoad(t, second, third)
		time.Sleep(5 * time.Second)
		first.kill()
		time.Sleep(10 * time.Second)
		l.stop()
		l.check(second)
		l.check(third)
		if l.slowest > c.config.LeaseTime+2*time.Second {
			t.Errorf("an append took %s", l.slowest)
		}
		for _, m := range []*member{second, third} {
			if n := m.sealedJournals(); n > 0 {
				t.Errorf("%s keeps %d journals of gateways that are gone", m.address, n)
			}
		}
		second.drain()
		third.drain()
	})
}

// sealedJournals counts those that it keeps in memory.
func (m *member) sealedJournals() (n int) {
	s := m.tenure.Load().sequencer
	s.sealedMu.Lock()
	entries := slices.Collect(maps.Values(s.sealed))
	s.sealedMu.Unlock()
	for _, entry := range entries {
		entry.turn <- struct{}{}
		if entry.journal != nil {
			n++
		}
		<-entry.turn
	}
	return n
}

// TestFencedGoesOn pauses a gateway for longer than the lease: it finds itself fenced, goes
// on under a new id, and what it had under way lands, once.
func TestFencedGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second := c.start(), c.start()
		first.create(t, "a", clusterPartitions, nil)
		c.settle()
		l := startLoad(t, first, second)
		l.tolerate = func(err error) bool { return connect.CodeOf(classified(err)) == connect.CodeUnavailable }
		time.Sleep(3 * time.Second)
		id := first.ID()
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
		time.Sleep(3 * c.config.LeaseTime)
		l.stop()
		if first.ID() == id {
			t.Error("it goes by its old id")
		}
		l.check(first)
		l.check(second)
		rows, err := metadata.ListGateways(t.Context(), c.d.Table, metadata.Strong, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			if row.ID == id && row.State != metadata.GatewayClosed {
				t.Errorf("its old id is %s", row.State)
			}
		}
		first.drain()
		second.drain()
	})
}

// TestFollowersElsewhere follows every partition on a gateway that does not sequence it.
func TestFollowersElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second := c.start(), c.start()
		first.create(t, "a", clusterPartitions, nil)
		c.settle()
		fetch := func(m *member, p int32, from int64, wait int32) (*varvev1.FetchResponse, error) {
			return m.log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a", Partition: p, MaxWaitMs: wait, Decode: true,
				Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: from}}})
		}
		for n := range int64(5) {
			for p := range int32(clusterPartitions) {
				for _, m := range []*member{first, second} {
					type fetched struct {
						*varvev1.FetchResponse
						err error
						at  time.Time
					}
					got := make(chan fetched, 1)
					begin := 2*n + map[*member]int64{first: 0, second: 1}[m]
					go func() {
						out, err := fetch(m, p, begin, 20_000)
						got <- fetched{out, err, time.Now()}
					}()
					time.Sleep(time.Millisecond)
					if _, err := first.append("a", p, fmt.Sprint(n)); err != nil {
						t.Fatal(err)
					}
					acked := time.Now()
					if f := <-got; f.err != nil || len(f.GetRecords()) != 1 || f.at.Sub(acked) > 20*time.Millisecond {
						t.Fatalf("partition %d: woken after %s with %d records, %v", p, f.at.Sub(acked), len(f.GetRecords()), f.err)
					}
				}
			}
		}
		first.drain()
		second.drain()
	})
}

// TestTableOutage takes the table from all gateways for long, wholly or for writes only:
// nobody is taken for dead, and all go on under their ids.
func TestTableOutage(t *testing.T) {
	for _, reads := range []bool{false, true} {
		t.Run(fmt.Sprintf("reads=%v", reads), func(t *testing.T) { testTableOutage(t, reads) })
	}
}

func testTableOutage(t *testing.T, reads bool) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		members := []*member{c.start(), c.start(), c.start()}
		members[0].create(t, "a", clusterPartitions, nil)
		c.settle()
		l := startLoad(t, members...)
		l.tolerate = func(err error) bool { return connect.CodeOf(classified(err)) == connect.CodeUnavailable }
		time.Sleep(time.Second)
		var ids []metadata.GatewayID
		for _, m := range members {
			ids = append(ids, m.ID())
			m.table.set(func(op metadata.Op, _ metadata.Key) error {
				if reads && (op == metadata.OpGet || op == metadata.OpRange) {
					return nil
				}
				return fmt.Errorf("%w: out", metadata.ErrUnavailable)
			})
		}
		time.Sleep(10 * time.Minute)
		for _, m := range members {
			m.table.clear()
		}
		time.Sleep(3 * time.Second)
		l.mu.Lock()
		before := len(l.acked)
		l.mu.Unlock()
		time.Sleep(2 * time.Second)
		l.stop()
		if len(l.acked) < before+clusterPartitions {
			t.Errorf("%d appends in the last seconds", len(l.acked)-before)
		}
		for i, m := range members {
			if m.ID() != ids[i] {
				t.Errorf("gateway %d goes by a new id", i)
			}
			l.check(m)
			m.drain()
		}
	})
}

// TestFenceHasOneWinner races for a fencing token and for an offset, through all gateways.
func TestFenceHasOneWinner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		members := []*member{c.start(), c.start(), c.start()}
		members[0].create(t, "a", clusterPartitions, nil)
		c.settle()
		current := ""
		for round := range 5 {
			var winners, appends atomic.Int64
			var group sync.WaitGroup
			won := make(chan string, 9)
			for i := range 9 {
				group.Go(func() {
					token := fmt.Sprint(round, "-", i)
					was := current
					_, err := members[i%3].log.Fence(t.Context(), &varvev1.FenceRequest{Topic: "a", Partition: 1, Token: token, CurrentToken: &was})
					if err == nil {
						winners.Add(1)
						won <- token
					} else if connect.CodeOf(classified(err)) != connect.CodeAborted {
						t.Errorf("fence: %v", err)
					}
				})
			}
			group.Wait()
			if winners.Load() != 1 {
				t.Fatalf("%d winners", winners.Load())
			}
			current = <-won
			for i := range 9 {
				group.Go(func() {
					at, partition := int64(round), int32(1)
					_, err := members[i%3].log.Produce(t.Context(), &varvev1.ProduceRequest{Topic: "a", Partition: &partition, ExpectedOffset: &at,
						FencingToken: &current, Records: []*varvev1.Record{{Value: []byte("x")}}})
					if err == nil {
						appends.Add(1)
					} else if connect.CodeOf(classified(err)) != connect.CodeFailedPrecondition {
						t.Errorf("append: %v", err)
					}
				})
			}
			group.Wait()
			if appends.Load() != 1 {
				t.Fatalf("%d appends at offset %d", appends.Load(), round)
			}
			stale, partition := "stale", int32(1)
			_, err := members[round%3].log.Produce(t.Context(), &varvev1.ProduceRequest{Topic: "a", Partition: &partition, FencingToken: &stale,
				Records: []*varvev1.Record{{Value: []byte("x")}}})
			if connect.CodeOf(classified(err)) != connect.CodeAborted {
				t.Errorf("an append with another token: %v", err)
			}
		}
		for _, m := range members {
			m.drain()
		}
	})
}

// TestWrongPeers calls a gateway as nobody should.
func TestWrongPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first := c.start()
		other := newTestCluster(t)
		other.network = c.network
		other.count = 10
		stranger := other.start()
		peer := &peers{g: stranger.Gateway, dial: c.network.Dial, list: make(map[metadata.GatewayID]*peer)}
		stranger.members.mu.Lock()
		stranger.members.seen["g1"] = sighting{row: metadata.Gateway{ID: "g1", Peer: first.address, State: metadata.GatewayLive, Protocol: peerProtocol}}
		stranger.members.seen["g2"] = sighting{row: metadata.Gateway{ID: "g2", Peer: first.address, State: metadata.GatewayLive, Protocol: peerProtocol + 1}}
		stranger.members.seen["g3"] = sighting{row: metadata.Gateway{ID: "g3", State: metadata.GatewayLive}}
		stranger.members.mu.Unlock()
		for _, id := range []metadata.GatewayID{"g1", "g2", "g3", "g4"} {
			_, err := peer.refer(t.Context(), id, []*metadata.Reference{{Partition: metadata.PartitionID{Number: 1}, Uploader: stranger.ID(), Number: 1}})
			if !errors.Is(err, errUnreachable) {
				t.Errorf("%s: %v", id, err)
			}
			t.Log(err)
		}
		_, err := (&peerService{first.Gateway}).Refer(t.Context(), nil)
		if connect.CodeOf(classified(err)) != connect.CodeFailedPrecondition {
			t.Error(err)
		}
		first.drain()
		stranger.drain()
	})
}
