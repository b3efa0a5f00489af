package compactor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/segments/memstore"
)

// pureCluster is a cluster of nothing but partitions' states.
type pureCluster struct {
	t     *testing.T
	store segments.Store
	table metadata.Table

	mu       sync.Mutex
	id       metadata.GatewayID
	topic    *metadata.Topic
	state    map[metadata.PartitionID]*metadata.Partition
	number   uint64
	sequence uint64
	views    int
	lists    int
	swaps    []*metadata.Swap
	floor    map[metadata.GatewayID]uint64
	failing  error
	ahead    time.Duration // its clock
	// answer, if set, has its way with the answers to swaps.
	answer func(*metadata.Swap, error) error
	// elsewhere are partitions that another one merges.
	elsewhere map[metadata.PartitionID]bool
}

func newPureCluster(t *testing.T, partitions int32) *pureCluster {
	return &pureCluster{t: t, store: memstore.New(), table: memtable.New(), id: "g1", state: make(map[metadata.PartitionID]*metadata.Partition),
		topic: &metadata.Topic{Name: "a", State: metadata.TopicActive, Partitions: partitions, Config: metadata.DefaultConfig()}, floor: make(map[metadata.GatewayID]uint64)}
}

func (c *pureCluster) ClusterID() string { return string(testCluster) }

func (c *pureCluster) Merges(id metadata.PartitionID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.elsewhere[id]
}

func (c *pureCluster) ID() metadata.GatewayID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id
}

func (c *pureCluster) SetMergeFloor(id metadata.GatewayID, floor uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.floor[id] = floor
}

func (c *pureCluster) Topics(context.Context) ([]*metadata.Topic, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lists++
	return []*metadata.Topic{c.topic}, c.failing
}

func (c *pureCluster) Topic(context.Context, string) (*metadata.Topic, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.topic, nil
}

func (c *pureCluster) Clock() time.Time { return time.Now().Add(c.ahead) }

func (c *pureCluster) View(_ context.Context, id metadata.PartitionID) (*metadata.View, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.views++
	return c.partition(id).View(), c.failing
}

func (c *pureCluster) partition(id metadata.PartitionID) *metadata.Partition {
	if c.state[id] == nil {
		c.state[id] = metadata.NewPartition(id)
	}
	return c.state[id]
}

func (c *pureCluster) Swap(_ context.Context, w *metadata.Swap) (metadata.SwapOutcome, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.swaps = append(c.swaps, w)
	p := c.partition(w.Partition)
	outcome, change, err := p.JudgeSwap(w)
	if change != nil {
		c.sequence++
		err = errors.Join(err, p.Apply(change, c.sequence))
	}
	if c.answer != nil {
		err = c.answer(w, err)
	}
	return outcome, err
}

// append commits a segment with a batch of size bytes in each of some partitions, and returns what to note of each.
func (c *pureCluster) append(size int, partitions ...int) (next, bytes int64) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.number++
	builder := segments.NewBuilder(testCluster, "g1", c.number)
	for _, n := range partitions {
		b, record := batch.NewBuilder(batch.None), batch.Record{Timestamp: int64(c.number), Value: make([]byte, size)}
		if c.topic.Config.Compacts() {
			record.Key = []byte("k")
		}
		must(c.t, b.Append(record))
		data, err := b.Build(batch.NoProducer)
		must(c.t, err)
		h, err := batch.ParseHeader(data)
		must(c.t, err)
		must(c.t, builder.Add(segments.SpanID{Partition: int32(n)}, data, infoOf(h)))
	}
	object, err := builder.Build(func(segments.SpanID) uint64 { return 0 })
	must(c.t, err)
	must(c.t, c.store.Put(context.Background(), object.Key(), object))
	for _, s := range object.Directory.Spans {
		p := c.partition(partitionID(int(s.Partition)))
		b := s.Batches[0]
		_, change := p.Judge(&metadata.Reference{Partition: p.ID(), Uploader: "g1", Number: c.number, ByNumber: true, Batches: []metadata.Batch{{Position: b.Position,
			Size: b.Size, Offsets: 1, Records: 1, MinTimestamp: b.MinTimestamp, MaxTimestamp: b.MaxTimestamp, LastTimestamp: b.LastTimestamp, CRC: b.CRC,
			ProducerID: -1, ExpectedOffset: -1}}})
		c.sequence++
		must(c.t, p.Apply(change, c.sequence))
		next, bytes = p.Next(), s.Length
	}
	return next, bytes
}

// asked is what a compactor asked for so far.
type asked struct{ views, lists, swaps int }

func (c *pureCluster) calls() asked {
	c.mu.Lock()
	defer c.mu.Unlock()
	return asked{c.views, c.lists, len(c.swaps)}
}

// lastSwap is the newest swap, and the floor of an id.
func (c *pureCluster) lastSwap(id metadata.GatewayID) (*metadata.Swap, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.swaps[len(c.swaps)-1], c.floor[id]
}

func (c *pureCluster) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failing = err
}

func (c *pureCluster) entries(n int) []metadata.Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.partition(partitionID(n)).View().Tail
}

// running has a compactor of it run until the test ends.
func (c *pureCluster) running(config Config) *Compactor {
	c.t.Helper()
	if config.LooksPerSecond == 0 {
		config.LooksPerSecond = -1
	}
	m, err := New(config, Dependencies{Store: c.store, Table: c.table, Cluster: c})
	must(c.t, err)
	c.t.Cleanup(runs(m))
	return m
}

// TestMergedByAge: small runs are merged once they are an hour old; before and after that nothing is asked of anybody.
func TestMergedByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPureCluster(t, 2)
		m := c.running(Config{})
		began := time.Now()
		for range 10 {
			next, bytes := c.append(1000, 0, 1)
			m.Note(partitionID(0), next, bytes)
			m.Note(partitionID(1), next, bytes)
			time.Sleep(time.Minute)
		}
		time.Sleep(59*time.Minute - time.Since(began))
		synctest.Wait()
		if got := c.calls(); got != (asked{}) {
			t.Errorf("within the hour there were calls: %+v", got)
		}
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if a, b := c.entries(0), c.entries(1); len(a) != 1 || len(b) != 1 || a[0].Number != b[0].Number || !a[0].Gateway.IsMerger() {
			t.Errorf("after it: %+v and %+v", a, b)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		before := c.calls()
		time.Sleep(30 * 24 * time.Hour)
		synctest.Wait()
		if got := c.calls(); got != before {
			t.Errorf("calls %+v became %+v in a month without a commit", before, got)
		}
		if len(m.tracked) != 0 {
			t.Errorf("%d partitions are kept in mind", len(m.tracked))
		}
	})
}

// TestActiveTail: what was committed a moment ago is left alone, and merged when its time has come.
func TestActiveTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPureCluster(t, 1)
		m := c.running(Config{})
		for range 20 * 60 {
			next, bytes := c.append(100, 0)
			m.Note(partitionID(0), next, bytes)
			time.Sleep(time.Minute)
		}
		list := c.entries(0)
		merged, raw := 0, 0
		for i := range list {
			if list[i].Gateway.IsMerger() {
				merged++
			} else {
				raw++
			}
		}
		if merged < 15 || merged > 30 || raw < 10 || raw > 100 {
			t.Errorf("after 20 hours there are %d merged entries and %d others", merged, raw)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		for _, e := range c.entries(0) {
			if !e.Gateway.IsMerger() {
				t.Errorf("offset %d was not merged", e.First)
			}
		}
		// A day later the short ones are merged once more, and then nothing is left to do.
		time.Sleep(3 * 24 * time.Hour)
		synctest.Wait()
		if list := c.entries(0); len(list) > 4 {
			t.Errorf("%d entries are left after three days", len(list))
		}
		before := c.calls()
		time.Sleep(30 * 24 * time.Hour)
		synctest.Wait()
		if got := c.calls(); got != before || len(m.tracked) != 0 {
			t.Errorf("calls %+v became %+v in a month without a commit; %d partitions are kept in mind", before, got, len(m.tracked))
		}
	})
}

// TestMergedBySize: a segment's worth is merged at once.
func TestMergedBySize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPureCluster(t, 1)
		m := c.running(Config{TargetBytes: 64 << 10})
		for range 30 {
			next, bytes := c.append(4<<10, 0)
			m.Note(partitionID(0), next, bytes)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if list := c.entries(0); len(list) > 20 || !list[0].Gateway.IsMerger() || list[len(list)-1].Gateway.IsMerger() {
			t.Errorf("%d entries are left", len(list))
		}
		if w, floor := c.lastSwap("g1"); floor != w.Number+1 {
			t.Errorf("the floor is %d after all was settled", floor)
		}
	})
}

// TestLook: what nobody notes, since it was there before, is looked at once, an hour after the start, at a pace.
func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPureCluster(t, 1000)
		for range 5 {
			c.append(1000, 7, 900)
		}
		m := c.running(Config{LooksPerSecond: 100})
		time.Sleep(time.Hour + 3*time.Second)
		synctest.Wait()
		if got := c.calls(); got.views < 300 || got.views > 500 {
			t.Errorf("within seconds there were calls: %+v", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if a, b := c.entries(7), c.entries(900); len(a) != 1 || len(b) != 1 {
			t.Errorf("%d and %d entries are left", len(a), len(b))
		}
		before := c.calls()
		time.Sleep(30 * 24 * time.Hour)
		synctest.Wait()
		if got := c.calls(); got != before || len(m.tracked) != 0 {
			t.Errorf("calls %+v became %+v", before, got)
		}
	})
}

// TestRetries: what fails is tried again, at growing distances, and nothing is forgotten.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPureCluster(t, 1)
		m := c.running(Config{TargetBytes: 64 << 10})
		c.fail(metadata.ErrUnavailable)
		for range 30 {
			next, bytes := c.append(4<<10, 0)
			m.Note(partitionID(0), next, bytes)
		}
		time.Sleep(10 * time.Minute)
		if got := c.calls(); got.swaps > 0 || got.lists < 3 || got.lists > 6 {
			t.Errorf("calls while all fails: %+v", got)
		}
		c.fail(nil)
		time.Sleep(20 * time.Minute)
		if len(c.entries(0)) > 20 {
			t.Errorf("%d entries are left", len(c.entries(0)))
		}
	})
}

// TestElsewhere: what another one merges by the time that it is due is left to that one.
func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPureCluster(t, 2)
		m := c.running(Config{})
		for range 10 {
			next, bytes := c.append(1000, 0, 1)
			m.Note(partitionID(0), next, bytes)
			m.Note(partitionID(1), next, bytes)
		}
		time.Sleep(time.Minute)
		c.mu.Lock()
		c.elsewhere = map[metadata.PartitionID]bool{partitionID(1): true}
		c.mu.Unlock()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if a, b := c.entries(0), c.entries(1); len(a) != 1 || len(b) != 10 || len(m.tracked) != 0 {
			t.Errorf("%d and %d entries are left, %d partitions kept in mind", len(a), len(b), len(m.tracked))
		}
		if r, err := m.Compact(t.Context(), "", false); err != nil || r.Partitions != 1 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// TestDoubtEnds: a swap whose outcome nobody tells holds the floor where it is, until somebody does.
func TestDoubtEnds(t *testing.T) {
	for _, keys := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := newPureCluster(t, 1)
			if keys {
				c.topic.Config.Cleanup = metadata.CleanupCompact
			}
			m := c.running(Config{TargetBytes: 64 << 10})
			answers := map[error]int{}
			fault := func(err error, rewritten bool) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.answer = func(w *metadata.Swap, was error) error {
					if err == nil || w.Rewritten != rewritten {
						return was
					}
					answers[err]++
					return err
				}
			}
			unknown, broken := fmt.Errorf("%w: a row is damaged", metadata.ErrUnknown), fmt.Errorf("%w: a row", metadata.ErrCorrupt)
			fault(unknown, keys)
			for range 16 {
				next, bytes := c.append(4<<10, 0)
				m.Note(partitionID(0), next, bytes)
			}
			if _, err := m.Compact(t.Context(), "", false); err != nil {
				t.Fatal(err)
			}
			fault(broken, keys)
			time.Sleep(30 * time.Minute)
			c.mu.Lock()
			if answers[unknown] == 0 || answers[broken] == 0 || answers[broken] > 20 {
				t.Errorf("keys %v: answers in doubt %d, while that lasts %d", keys, answers[unknown], answers[broken])
			}
			c.mu.Unlock()
			w, floor := c.lastSwap("g1")
			if floor > w.Number {
				t.Errorf("keys %v: the floor is %d while swap %d is in doubt", keys, floor, w.Number)
			}
			fault(nil, keys)
			time.Sleep(time.Hour)
			w, floor = c.lastSwap("g1")
			if calls := c.calls(); floor != w.Number+1 {
				t.Errorf("keys %v: the floor is %d after swap %d was settled (%+v)", keys, floor, w.Number, calls)
			}
			before := c.calls()
			if time.Sleep(10 * time.Hour); c.calls() != before {
				t.Errorf("keys %v: %+v became %+v although there is nothing to do", keys, before, c.calls())
			}
		})
	}
}

// TestNumbersOfAnotherID: numbers begin anew when the gateway goes on under another id, and so does the floor.
func TestNumbersOfAnotherID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPureCluster(t, 1)
		m := c.running(Config{TargetBytes: 64 << 10})
		round := func() {
			for range 16 {
				next, bytes := c.append(4<<10, 0)
				m.Note(partitionID(0), next, bytes)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		round()
		first := c.calls().swaps
		c.mu.Lock()
		c.id = "g2"
		c.mu.Unlock()
		round()
		if first == 0 || c.calls().swaps == first {
			t.Fatalf("%d swaps, then %d", first, c.calls().swaps)
		}
		if w, floor := c.lastSwap("g2"); w.Uploader != "g2-m" || w.Number > 3 || floor != w.Number+1 {
			t.Errorf("swap %d of %s, floor %d", w.Number, w.Uploader, floor)
		}
	})
}
