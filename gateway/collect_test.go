package gateway

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// TestAcknowledgeWaitsForTheCycle: a gateway says that it knows of a closing only when what it judged without knowing is
// settled. After that it takes nothing more of the one that is closed.
func TestAcknowledgeWaitsForTheCycle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.LeaseTime = 10 * time.Minute // they look at each other's rows seldom
		c.stranger("u")
		asking, asked := c.start(), c.start()
		topic := asked.create(t, "a", clusterPartitions, nil)
		if err := asking.members.refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		id := metadata.PartitionID{Topic: topic.ID, Number: foreign(t, topic, asked)}
		held, release := make(chan struct{}), make(chan struct{})
		asked.table.set(func(op metadata.Op, key metadata.Key) error {
			if op == metadata.OpPut && key.Partition == "journal/"+string(asked.ID()) {
				select {
				case <-held:
				default:
					close(held)
				}
				<-release
			}
			return nil
		})
		verdict := make(chan error, 1)
		go func() {
			_, err := asked.judged(t, id, "u")
			verdict <- err
		}()
		<-held // it is judged, and on its way into the journal
		if err := metadata.MarkClosed(t.Context(), c.d.Table, "u"); err != nil {
			t.Fatal(err)
		}
		answer := make(chan error, 1)
		go func() { answer <- asking.Acknowledge(t.Context(), asked.ID()) }()
		time.Sleep(time.Second)
		select {
		case err := <-answer:
			t.Fatalf("it says that it knows, with a reference under way: %v", err)
		default:
		}
		close(release)
		if err := <-answer; err != nil {
			t.Fatal(err)
		}
		if err := <-verdict; err != nil {
			t.Errorf("what was judged before: %v", err)
		}
		asked.table.clear()
		if _, err := asked.judged(t, id, "u"); err == nil {
			t.Error("a late reference is taken")
		}
		if err := asked.Acknowledge(t.Context(), asked.ID()); err != nil {
			t.Errorf("by itself: %v", err)
		}
		c.network.disconnect(asked.address, true)
		if err := asking.Acknowledge(t.Context(), asked.ID()); err == nil {
			t.Error("who cannot be asked knows")
		}
		c.network.disconnect(asked.address, false)
		asking.drain()
		asked.drain()
	})
}

// TestRemovedGateway: the row of a gateway that is closed was collected. Who saw it while it lived takes nothing of it, and
// partitions forget it.
func TestRemovedGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.FoldRows, c.config.FoldBytes = 1, 1
		c.stranger("u")
		m := c.start()
		id := metadata.PartitionID{Topic: m.create(t, "a", 1, nil).ID}
		if v, err := m.judged(t, id, "u"); err != nil || v.Status != metadata.Judged {
			t.Fatalf("%+v %v", v, err)
		}
		if err := c.d.Table.Delete(t.Context(), metadata.GatewayID("u").RowKey(), metadata.Condition{}); err != nil {
			t.Fatal(err)
		}
		c.settle()
		if _, err := m.judged(t, id, "u"); err == nil {
			t.Error("a reference of a gateway that is gone is judged")
		}
		for range 5 {
			if _, err := m.append("a", 0, "x"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		lease, err := metadata.ReadLease(t.Context(), c.d.Table, id, metadata.Strong)
		if err != nil || slices.Contains(lease.State().Uploaders(), "u") {
			t.Errorf("the partition remembers it: %v %v", lease.State().Uploaders(), err)
		}
		m.drain()
	})
}

// TestDiskOfARemovedGateway: a disk comes back when even the row of its gateway is gone. Its buffer is set aside, and nothing of
// it is uploaded.
func TestDiskOfARemovedGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBereft(t, time.Hour)
		time.Sleep(time.Hour)
		b.visit()
		if state := b.state(t); state != metadata.GatewayClosed {
			t.Fatalf("the dead gateway is %s", state)
		}
		if err := b.d.Table.Delete(t.Context(), b.dead.RowKey(), metadata.Condition{}); err != nil {
			t.Fatal(err)
		}
		b.visit()
		files, objects := buffersOf(t, b.disk, b.dead), b.objectsOf(t, b.dead)
		m, _ := b.startOn(b.disk)
		waitRecovered(t, m.Gateway)
		b.check(t, m, false)
		m.drain()
		m.closeDisk()
		if now := b.objectsOf(t, b.dead); now != objects {
			t.Errorf("%d objects of it, there were %d", now, objects)
		}
		kept := buffersOf(t, b.disk, b.dead)
		for path, content := range files {
			if !slices.ContainsFunc(valuesOf(kept), func(c []byte) bool { return bytes.Equal(c, content) }) {
				t.Errorf("what was in %s is gone", path)
			}
		}
		b.survivor.drain()
	})
}

// objectsOf counts the objects of an uploader.
func (c *testCluster) objectsOf(t *testing.T, id metadata.GatewayID) int {
	t.Helper()
	list, err := c.d.Store.List(t.Context(), "", "", 10_000)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, o := range list {
		if strings.Contains(o.Key, string(id)) && strings.HasSuffix(o.Key, segments.Suffix) {
			n++
		}
	}
	return n
}

// TestLitter: trims, ends of partitions, refused appends and closings are counted, here and, with the next beat, elsewhere; nothing
// else is.
func TestLitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		first, second := c.start(), c.start()
		topic := first.create(t, "a", clusterPartitions, nil)
		c.settle()
		count := func() [2]uint64 {
			c.settle()
			a, _ := first.Litter()
			b, _ := second.Litter()
			return [2]uint64{a, b}
		}
		before := count()
		for p := range int32(clusterPartitions) {
			for range 3 {
				if _, err := first.append("a", p, "x"); err != nil {
					t.Fatal(err)
				}
			}
		}
		if now := count(); now != before {
			t.Errorf("after appends: %v, before %v", now, before)
		}
		_, changed := second.Litter()
		for p := range int32(clusterPartitions) {
			if _, err := first.router.decide(t.Context(), metadata.PartitionID{Topic: topic.ID, Number: p}, decision{trim: new(int64(2))}); err != nil {
				t.Fatal(err)
			}
		}
		want := [2]uint64{before[0] + clusterPartitions, before[1] + clusterPartitions}
		if now := count(); now != want {
			t.Errorf("after %d trims: %v, before %v", clusterPartitions, now, before)
		}
		select {
		case <-changed:
		default:
			t.Error("nobody was woken")
		}
		expected := int64(77)
		p := int32(0)
		_, _ = first.log.Produce(t.Context(), &varvev1.ProduceRequest{Topic: "a", Partition: &p, ExpectedOffset: &expected, Records: []*varvev1.Record{{Value: []byte("x")}}})
		if now := count(); now[0] != want[0]+1 || now[1] != want[1]+1 {
			t.Errorf("after an append that was refused: %v, before %v", now, want)
		}
		second.drain()
		c.settle()
		if now, _ := first.Litter(); now != want[0]+2 {
			t.Errorf("after a gateway left: %d, before %v", now, want)
		}
		first.drain()
	})
}
