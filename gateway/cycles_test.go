package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
)

// commitWrites counts what a gateway put into its journal.
func (m *member) commitWrites() uint64 {
	return m.meters.table[metadata.OpPut][rowCommit].calls.Load()
}

// appendOneEach appends a record to each of so many partitions, in one request.
func (m *member) appendOneEach(topic string, partitions int32) error {
	request := &varvev1.ProduceRequest{Topic: topic}
	for p := range partitions {
		request.Records = append(request.Records, &varvev1.Record{Value: []byte("v"), Partition: &p})
	}
	_, err := m.log.Produce(context.Background(), request)
	return err
}

// TestCommitsDoNotGrowWithTheSquare has each gateway flush to partitions of all gateways at its own
// moments: commits are bounded by the sequencers, not by the pairs of gateways.
func TestCommitsDoNotGrowWithTheSquare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const gateways, partitions, seconds = 6, 48, 10
		c := newTestCluster(t)
		c.config.FlushInterval = 250 * time.Millisecond
		var members []*member
		for range gateways {
			members = append(members, c.start())
		}
		members[0].create(t, "a", partitions, nil)
		c.settle()
		if err := members[0].appendOneEach("a", partitions); err != nil {
			t.Fatal(err)
		}
		var before, after, flushes uint64
		for _, m := range members {
			before += m.commitWrites()
			flushes -= m.meters.flushes.Load()
		}
		var group sync.WaitGroup
		end := time.Now().Add(seconds * time.Second)
		for i, m := range members {
			for range 4 { // an append that waits for its ack must not be all there is
				group.Go(func() {
					time.Sleep(time.Duration(i) * 37 * time.Millisecond)
					for time.Now().Before(end) {
						if err := m.appendOneEach("a", partitions); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
		}
		group.Wait()
		for _, m := range members {
			after += m.commitWrites()
			flushes += m.meters.flushes.Load()
		}
		if flushes < 3*gateways*seconds {
			t.Errorf("%d flushes in %d s: the gateways were not at their pace", flushes, seconds)
		}
		if commits := after - before; commits > 9*gateways*seconds {
			t.Errorf("%d commit writes of %d gateways in %d s, want no more than 8 a second and gateway", commits, gateways, seconds)
		}
		for _, m := range members {
			m.drain()
		}
	})
}

// TestLadenCyclesComeSooner has producers wait with all that they have in flight: what fills half a segment does not
// wait for a commit as small appends do, and each such commit is worth it.
func TestLadenCyclesComeSooner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const producers, size, seconds = 16, 16 << 10, 10
		c := newTestCluster(t)
		c.config.FlushInterval, c.config.SegmentBytes = 250*time.Millisecond, 4*size
		m := c.start()
		m.create(t, "a", 1, nil)
		c.settle()
		value := string(make([]byte, size))
		before, appends := m.commitWrites(), atomic.Int64{}
		end := time.Now().Add(seconds * time.Second)
		var group sync.WaitGroup
		for range producers {
			group.Go(func() {
				for time.Now().Before(end) {
					if _, err := m.append("a", 0, value); err != nil {
						t.Error(err)
						return
					}
					appends.Add(1)
				}
			})
		}
		group.Wait()
		commits := int64(m.commitWrites() - before)
		// With two in a flush interval there are eight a second, of 16 appends each.
		if n := appends.Load(); n < 20*producers*seconds || commits*2 > n {
			t.Errorf("%d appends in %d commits in %d s, want %d a second and 2 a commit, at least", n, commits, seconds, 20*producers)
		}
		m.drain()
	})
}

// TestManyAreTakenInFewCommits appends to partitions that nobody has yet.
func TestManyAreTakenInFewCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.FlushInterval = 250 * time.Millisecond
		m := c.start()
		m.create(t, "a", 500, nil)
		m.table.set(func(metadata.Op, metadata.Key) error {
			time.Sleep(5 * time.Millisecond)
			return nil
		})
		before, began := m.commitWrites(), time.Now()
		if err := m.appendOneEach("a", 500); err != nil {
			t.Fatal(err)
		}
		if commits := m.commitWrites() - before; commits > 10 {
			t.Errorf("the first appends to 500 partitions took %d commits", commits)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the first appends to 500 partitions took %s, with a table that answers in 5 ms", took)
		}
		m.drain()
	})
}

// TestAppendsGoOnOnceTheirSequencerIsDead has appends wait for a gateway that was killed: they go on
// when it is taken for dead, and not a pause between two tries later.
func TestAppendsGoOnOnceTheirSequencerIsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.LeaseTime = 10 * time.Second // tries are far apart by then
		victim, other := c.start(), c.start()
		topic := victim.create(t, "a", 64, nil)
		c.settle()
		var its []int32
		for p := range int32(64) {
			if other.members.winner(metadata.PartitionID{Topic: topic.ID, Number: p}) == victim.ID() {
				its = append(its, p)
			}
		}
		if err := other.appendOneEach("a", 64); err != nil {
			t.Fatal(err)
		}
		c.network.set(victim.address, nil)
		victim.life.over.Store(true) // what of it still runs reaches nothing
		changed := other.members.watch()
		var group sync.WaitGroup
		acked := make([]time.Time, 6)
		for i := range acked {
			group.Go(func() {
				time.Sleep(time.Duration(i) * 300 * time.Millisecond)
				if _, err := other.append("a", its[i], "v"); err != nil {
					t.Error(err)
				}
				acked[i] = time.Now()
			})
		}
		<-changed
		dead := time.Now()
		group.Wait()
		for i, at := range acked {
			if late := at.Sub(dead); late > 100*time.Millisecond {
				t.Errorf("append %d was acked %s after the gateway was taken for dead", i, late)
			}
		}
		victim.kill()
		other.drain()
	})
}
