package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
)

func outOfReach(metadata.Op, metadata.Key) error {
	return fmt.Errorf("%w: out", metadata.ErrUnavailable)
}

// seals counts the journals that are sealed.
func (c *testCluster) seals() int {
	c.t.Helper()
	rows, err := metadata.ListGateways(c.t.Context(), c.d.Table, metadata.Strong, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	sealed := 0
	for _, row := range rows {
		if row.State == metadata.GatewaySealed {
			sealed++
		}
		if _, err := metadata.ReadSealed(c.t.Context(), c.d.Table, row.ID); err == nil {
			sealed++
		}
	}
	return sealed
}

// TestTableGoneForHours takes the table away for three hours: appends fail fast and say that they may
// be tried again, what is known is read, nobody takes anybody for dead, and all goes on at once when it is back.
func TestTableGoneForHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		members := []*member{c.start(), c.start(), c.start()}
		members[0].create(t, "a", clusterPartitions, nil)
		c.settle()
		var ids []metadata.GatewayID
		for _, m := range members {
			ids = append(ids, m.ID())
			for p := range int32(clusterPartitions) {
				if _, err := m.append("a", p, "before"); err != nil {
					t.Fatal(err)
				}
				m.values(t, "a", p) // it is asked for, here as well
			}
		}
		for _, m := range members {
			m.table.set(outOfReach)
		}
		// Whoever appends at once waits for as long as it pleases, those who come later do not.
		var group sync.WaitGroup
		for _, m := range members {
			for p := range int32(clusterPartitions) {
				group.Go(func() { _ = m.appendWithin(t, 10*time.Second, p, "in doubt") })
			}
		}
		group.Wait()
		for range 18 {
			time.Sleep(10 * time.Minute)
			for _, m := range members {
				for p := range int32(clusterPartitions) {
					began := time.Now()
					err := m.appendWithin(t, 10*time.Second, p, "refused")
					if connect.CodeOf(classified(err)) != connect.CodeUnavailable || time.Since(began) > time.Second {
						t.Fatalf("an append took %s: %v", time.Since(began), err)
					}
				}
				if ready, _ := m.Ready(); ready {
					t.Error("it says that it is ready")
				}
			}
			for p := range int32(clusterPartitions) {
				for _, m := range members {
					if got := len(m.values(t, "a", p)); got < len(members) {
						t.Fatalf("%d records are read", got)
					}
				}
			}
		}
		for _, m := range members {
			m.table.clear()
		}
		time.Sleep(c.config.LeaseTime + 2*time.Second)
		for i, m := range members {
			if m.ID() != ids[i] {
				t.Errorf("gateway %d goes by a new id", i)
			}
			for p := range int32(clusterPartitions) {
				if err := m.appendWithin(t, time.Second, p, "after"); err != nil {
					t.Errorf("partition %d: %v", p, err)
				}
			}
		}
		if n := c.seals(); n != 0 {
			t.Errorf("%d seals", n)
		}
		for p := range int32(clusterPartitions) {
			got := members[0].values(t, "a", p)
			count := make(map[string]int)
			for _, v := range got {
				count[v]++
			}
			if count["before"] != 3 || count["after"] != 3 || count["refused"] > 0 || count["in doubt"] > 3 {
				t.Errorf("partition %d has %v", p, count)
			}
		}
		for _, m := range members {
			m.drain()
		}
	})
}

// TestPauseOfAll stops all gateways for long, as one that hosts them may be: the first one to go on does
// not take the others for dead.
func TestPauseOfAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		members := []*member{c.start(), c.start(), c.start()}
		members[0].create(t, "a", clusterPartitions, nil)
		c.settle()
		var gates []chan struct{}
		for _, m := range members {
			gate := make(chan struct{})
			gates = append(gates, gate)
			m.table.set(func(metadata.Op, metadata.Key) error {
				<-gate
				return nil
			})
		}
		// Its heartbeats go on first, then it looks at the others.
		gate, looks := gates[0], make(chan struct{})
		members[0].table.set(func(op metadata.Op, key metadata.Key) error {
			<-gate
			if op == metadata.OpRange && key.Partition == "gateways" {
				<-looks
			}
			return nil
		})
		time.Sleep(10 * time.Minute)
		close(gates[0])
		time.Sleep(c.config.LeaseTime)
		close(looks)
		time.Sleep(c.config.LeaseTime / 2)
		for _, gate := range gates[1:] {
			close(gate)
		}
		c.settle()
		if n := c.seals(); n != 0 {
			t.Errorf("%d seals", n)
		}
		for _, m := range members {
			if _, err := m.append("a", 0, "x"); err != nil {
				t.Error(err)
			}
			m.drain()
		}
	})
}

// TestAllKilledAtOnce kills all gateways and starts as many new ones, elsewhere, at the same moment: what was
// acked is there, and appends succeed within the lease time and two seconds.
func TestAllKilledAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		members := []*member{c.start(), c.start(), c.start()}
		members[0].create(t, "a", clusterPartitions, nil)
		c.settle()
		l := startLoad(t, members...)
		l.tolerate = func(err error) bool { return connect.CodeOf(classified(err)) == connect.CodeUnavailable }
		time.Sleep(3 * time.Second)
		// Not one after the other, since one that is killed waits for its goroutines.
		var group sync.WaitGroup
		for _, m := range members {
			m.life.over.Store(true)
			c.network.set(m.address, nil)
		}
		for _, m := range members {
			group.Go(m.kill)
		}
		group.Wait()
		killed := time.Now()
		members = []*member{c.start(), c.start(), c.start()}
		l.use(members...)
		l.mu.Lock()
		before := len(l.acked)
		l.mu.Unlock()
		for p := range int32(clusterPartitions) {
			if _, err := members[int(p)%3].append("a", p, "after"); err != nil {
				t.Errorf("partition %d: %v", p, err)
			}
		}
		if took := time.Since(killed); took > c.config.LeaseTime+2*time.Second {
			t.Errorf("it took %s", took)
		}
		time.Sleep(3 * time.Second)
		l.stop()
		if len(l.acked) < before+10*clusterPartitions {
			t.Errorf("%d appends succeeded afterwards", len(l.acked)-before)
		}
		for _, m := range members {
			l.check(m)
			m.drain()
		}
	})
}

// TestThrottledKey throttles the rows of one partition for minutes: the others do not notice, and it
// takes what waited when it may.
func TestThrottledKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		members := []*member{c.start(), c.start()}
		topic := members[0].create(t, "a", clusterPartitions, nil)
		c.settle()
		for p := range int32(1) { // the others are taken for the first time beside it
			if _, err := members[0].append("a", p, "before"); err != nil {
				t.Fatal(err)
			}
		}
		members[1].drain()
		members = []*member{members[0], c.start()}
		throttled := int32(3)
		key := fmt.Sprintf("partition/%s/%d", topic.ID, throttled)
		for _, m := range members {
			m.table.set(func(_ metadata.Op, k metadata.Key) error {
				if k.Partition == key {
					return fmt.Errorf("%w: throttled", metadata.ErrUnavailable)
				}
				return nil
			})
		}
		// One segment has a span of each partition: each is judged, and acked, by itself.
		var group sync.WaitGroup
		flushes := members[0].meters.flushes.Load()
		for i, m := range members {
			for p := range int32(clusterPartitions) {
				group.Go(func() {
					if p == throttled {
						if err := m.appendWithin(t, 10*time.Second, p, fmt.Sprint("waits ", i)); !classify(err).info.GetUnknownOutcome() {
							t.Errorf("an append that cannot be judged: %v", err)
						}
					} else if err := m.appendWithin(t, time.Second, p, "in one segment"); err != nil {
						t.Errorf("an append beside it, partition %d: %v", p, err)
					}
				})
			}
		}
		time.Sleep(time.Second)
		if n := members[0].meters.flushes.Load() - flushes; n > 2 {
			t.Errorf("%d segments: this proves little", n)
		}
		for range 60 {
			time.Sleep(5 * time.Second)
			for _, m := range members {
				for p := range int32(clusterPartitions) {
					if p != throttled {
						if err := m.appendWithin(t, time.Second, p, "beside it"); err != nil {
							t.Fatalf("partition %d: %v", p, err)
						}
					}
				}
			}
		}
		group.Wait()
		for _, m := range members {
			m.table.clear()
		}
		time.Sleep(5 * time.Second)
		if got := members[0].values(t, "a", throttled); len(got) != 2 || got[0] == got[1] {
			t.Errorf("what waited: %q", got)
		}
		if err := members[1].appendWithin(t, time.Second, throttled, "after"); err != nil {
			t.Error(err)
		}
		if n := c.seals(); n > 2 { // of the one that left
			t.Errorf("%d seals", n)
		}
		for _, m := range members {
			m.drain()
		}
	})
}

// TestRolledBackTable restores an older copy of the table: nobody serves it, neither a gateway that
// starts nor one that has to start over, and it is said what disagrees.
func TestRolledBackTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		restorable := newRestorable()
		c.d.Table = restorable
		first := c.start()
		first.create(t, "a", clusterPartitions, nil)
		if _, err := first.append("a", 0, "x"); err != nil {
			t.Fatal(err)
		}
		generation := func() uint64 {
			n, err := first.Gateway.cluster.Generation(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		copied, was := restorable.copy(t), generation()
		// It rises once in a minute that commits something, and only then.
		time.Sleep(2 * generationPace)
		if generation() != was {
			t.Error("the generation rises while nothing is committed")
		}
		for range 3 {
			time.Sleep(generationPace + time.Second)
			if _, err := first.append("a", 0, "x"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		now := generation()
		if now != was+3 {
			t.Errorf("the generation is %d, was %d three minutes ago", now, was)
		}
		restorable.restore(copied)
		err := func() error {
			g, err := New(Config{PeerAddress: "peer:1"}, Dependencies{Store: c.d.Store, Table: restorable})
			if err != nil {
				t.Fatal(err)
			}
			return g.Run(t.Context(), func() { t.Error("it serves") })
		}()
		for _, word := range []string{"rolled back", fmt.Sprintf("generation %d", was), fmt.Sprintf("has seen %d", now)} {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("the start says %v, want something with %q", err, word)
			}
		}
		// The one that runs finds its journal sealed by a gateway that does not look.
		if err := metadata.MarkSealed(t.Context(), restorable, first.ID(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := metadata.Seal(t.Context(), restorable, first.ID(), "g9"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-first.ended:
			if err == nil || !strings.Contains(err.Error(), "rolled back") {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("it goes on")
			first.drain()
		}
	})
}

// restorable is a table that can be set back.
type restorable struct {
	metadata.Table
	mu   *sync.Mutex
	keys map[metadata.Key]bool // that were ever put
}

func newRestorable() *restorable {
	return &restorable{Table: memtable.New(), mu: &sync.Mutex{}, keys: make(map[metadata.Key]bool)}
}

func (r *restorable) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	r.mu.Lock()
	r.keys[row.Key] = true
	r.mu.Unlock()
	return r.Table.Put(ctx, row, cond)
}

func (r *restorable) copy(t *testing.T) map[metadata.Key]metadata.Row {
	rows := make(map[metadata.Key]metadata.Row)
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.keys {
		if row, err := r.Table.Get(t.Context(), key, metadata.Strong); err == nil {
			rows[key] = row
		}
	}
	return rows
}

func (r *restorable) restore(rows map[metadata.Key]metadata.Row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.keys {
		if row, ok := rows[key]; ok {
			_ = r.Table.Put(context.Background(), row, metadata.Condition{})
		} else {
			_ = r.Table.Delete(context.Background(), key, metadata.Condition{})
		}
	}
}

// TestAcquisitionsAreLimited has gateways take over thousands of partitions: each takes no more than so many at
// a time, and those who see the same do not all begin at the same moment.
func TestAcquisitionsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const partitions, survivors = 1000, 4
		c := newTestCluster(t)
		first := c.start()
		first.create(t, "a", partitions, nil)
		for p := range int32(partitions) {
			if _, err := first.append("a", p, "x"); err != nil {
				t.Fatal(err)
			}
		}
		// The others come when the first does not hand over any more: it hangs.
		gate := make(chan struct{})
		first.table.set(func(metadata.Op, metadata.Key) error {
			<-gate
			return nil
		})
		var members []*member
		var taking, most [survivors]atomic.Int64
		var began [survivors]atomic.Int64
		shared := c.d.Table
		for i := range survivors {
			c.d.Table = &leaseTable{Table: shared, around: func(call func() error) error {
				began[i].CompareAndSwap(0, time.Now().UnixNano())
				n := taking[i].Add(1)
				most[i].Store(max(most[i].Load(), n))
				time.Sleep(20 * time.Millisecond)
				defer taking[i].Add(-1)
				return call()
			}}
			members = append(members, c.start())
		}
		c.d.Table = shared
		time.Sleep(10 * c.config.LeaseTime)
		var starts []int64
		for i := range survivors {
			if n := most[i].Load(); n > acquisitions || n < acquisitions/2 {
				t.Errorf("gateway %d took %d at a time, the limit is %d", i, n, acquisitions)
			}
			starts = append(starts, began[i].Load())
		}
		slices.Sort(starts)
		if spread := time.Duration(starts[survivors-1] - starts[0]); spread < time.Millisecond || len(slices.Compact(starts)) < survivors {
			t.Errorf("they all began within %s", spread)
		}
		held := 0
		for _, m := range members {
			held += int(m.tenure.Load().sequencer.holding.Load())
		}
		if held != partitions {
			t.Errorf("they have %d partitions of %d", held, partitions)
		}
		first.table.clear()
		close(gate)
		for _, m := range members {
			m.drain()
		}
		first.drain()
	})
}

// leaseTable stands around puts of lease rows.
type leaseTable struct {
	metadata.Table
	around func(func() error) error
}

func (l *leaseTable) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	if row.Sort != "lease" {
		return l.Table.Put(ctx, row, cond)
	}
	return l.around(func() error { return l.Table.Put(ctx, row, cond) })
}

// TestClosedUploaders sends references of a gateway that is closed, of which a partition has forgotten what it
// took from it, and of one that never was: nothing is appended a second time.
func TestClosedUploaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		said := &recorder{}
		c.wrap = said.wrap
		first, second, third := c.start(), c.start(), c.start()
		topic := first.create(t, "a", 64, nil) // of twelve, none may be the first one's
		c.settle()
		own, _ := sharesOf(topic, first.ID(), second.ID(), third.ID())
		p := own[0]
		if _, err := second.append("a", p, "once"); err != nil {
			t.Fatal(err)
		}
		second.drain()
		c.settle()
		first.drain() // whoever takes it knows nothing of the uploader any more
		c.settle()
		said.mu.Lock()
		asked := slices.Clone(said.asked)
		said.mu.Unlock()
		if len(asked) != 1 {
			t.Fatalf("%d references were judged", len(asked))
		}
		never := *asked[0].reference
		never.Uploader = "g0000000000000000000000"
		for name, ref := range map[string]*metadata.Reference{"closed": asked[0].reference, "never seen": &never} {
			out := make(chan error, 1)
			s := third.tenure.Load().sequencer
			s.submit(s.refer(ref, nil, func(_ metadata.Verdict, err error) { out <- err }))
			var closed *uploaderClosed
			if err := <-out; !errors.As(err, &closed) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := third.values(t, "a", p); fmt.Sprint(got) != "[once]" {
			t.Errorf("the log has %q", got)
		}
		third.drain()
	})
}

// TestClocksAnHourApart gives each gateway a wall clock of its own, hours apart, and has them jump: they come and
// go, one dies and is taken over from, as if the clocks were right.
func TestClocksAnHourApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		var clocks []*atomic.Int64
		start := func(off time.Duration) *member {
			clock := &atomic.Int64{}
			clock.Store(int64(off))
			clocks = append(clocks, clock)
			c.d.Now = func() time.Time { return time.Now().Add(time.Duration(clock.Load())).Round(0) }
			return c.start()
		}
		first, second, third := start(-time.Hour), start(0), start(time.Hour)
		first.create(t, "a", clusterPartitions, map[string]string{"timestamp.type": "append"})
		c.settle()
		ids := []metadata.GatewayID{first.ID(), second.ID()}
		l := startLoad(t, first, second)
		for i := range 10 {
			time.Sleep(time.Second)
			clocks[i%3].Store(int64(time.Duration(i-5) * time.Hour))
		}
		if n := c.seals(); n != 0 {
			t.Errorf("%d seals", n)
		}
		third.kill()
		time.Sleep(10 * time.Second)
		l.use(first)
		second.drain()
		time.Sleep(2 * time.Second)
		l.stop()
		if l.slowest > c.config.LeaseTime+2*time.Second {
			t.Errorf("an append took %s", l.slowest)
		}
		if first.ID() != ids[0] || second.ID() != ids[1] {
			t.Error("one goes by a new id")
		}
		l.check(first)
		// Their times are in no order: lookups equal brute force.
		for p := range int32(clusterPartitions) {
			records := first.readAll(t, "a", p)
			disorder := 0
			for i, r := range records {
				if i > 0 && r.GetTimestamp() < records[i-1].GetTimestamp() {
					disorder++
				}
				if i%100 != 0 {
					continue
				}
				at := r.GetTimestamp()
				want := slices.IndexFunc(records, func(r *varvev1.ReadRecord) bool { return r.GetTimestamp() >= at })
				out, err := first.log.ListOffsets(t.Context(), &varvev1.ListOffsetsRequest{Topic: "a", Partitions: []int32{p}, Query: &varvev1.ListOffsetsRequest_AtOrAfter{AtOrAfter: at}})
				if err != nil || out.GetOffsets()[0].GetOffset() != int64(want) {
					t.Fatalf("partition %d: at or after %d is %v, %v, want %d", p, at, out, err, want)
				}
			}
			if disorder == 0 {
				t.Errorf("partition %d is in order: this proves nothing", p)
			}
		}
		first.drain()
	})
}
