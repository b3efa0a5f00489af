package gateway

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/faultfs"
)

// What becomes of records that were acked as buffered when their gateway dies, by what becomes
// of its disk.

// lines keeps what gateways log.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// with returns the lines that have all the words.
func (l *lines) with(words ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
	for line := range strings.Lines(l.text.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			found = append(found, line)
		}
	}
	return found
}

// keepLog has the gateways that start from now on log into what is returned.
func (c *testCluster) keepLog() *lines {
	l := &lines{}
	c.log = slog.New(slog.NewTextHandler(l, nil))
	return l
}

// shutStore is a bucket that takes no segments while it is shut.
type shutStore struct {
	segments.Store
	shut atomic.Bool
}

func (s *shutStore) Put(ctx context.Context, key string, body segments.Body) error {
	if s.shut.Load() {
		return fmt.Errorf("%w: shut", segments.ErrUnavailable)
	}
	return s.Store.Put(ctx, key, body)
}

// startOn starts a gateway with a disk, whose way to the bucket can be shut.
func (c *testCluster) startOn(disk *faultfs.FS) (*member, *shutStore) {
	c.t.Helper()
	store, buffers := &shutStore{Store: c.d.Store}, openBuffers(c.t, disk)
	was := c.d
	c.d.Store, c.d.Buffers = store, buffers
	m := c.start()
	c.d = was
	m.closeDisk = func() { buffers.Close() }
	return m, store
}

func (m *member) appendBuffered(t *testing.T, partition int32, value string) {
	t.Helper()
	_, err := m.log.Produce(t.Context(), &varvev1.ProduceRequest{Topic: "a", Partition: &partition, Acks: varvev1.Acks_ACKS_BUFFERED,
		Records: []*varvev1.Record{{Value: []byte(value)}}})
	if err != nil {
		t.Fatal(err)
	}
}

// bereft is a cluster of which one gateway died with records on its disk that it had acked as
// buffered, and that nobody else has.
type bereft struct {
	*testCluster
	log       *lines
	disk      *faultfs.FS
	dead      metadata.GatewayID
	survivor  *member
	committed map[int32][]string
	buffered  map[int32][]string
}

func newBereft(t *testing.T, closeAfter time.Duration) *bereft {
	c := newTestCluster(t)
	c.config.CloseAfter = closeAfter
	b := &bereft{testCluster: c, log: c.keepLog(), disk: faultfs.New(), committed: make(map[int32][]string), buffered: make(map[int32][]string)}
	b.survivor = c.start() // the first of those that live, later on
	time.Sleep(time.Millisecond)
	first, store := c.startOn(b.disk)
	first.create(t, "a", clusterPartitions, nil)
	c.settle()
	for p := range int32(clusterPartitions) {
		for n := range 3 {
			value := fmt.Sprint("committed ", n)
			if _, err := first.append("a", p, value); err != nil {
				t.Fatal(err)
			}
			b.committed[p] = append(b.committed[p], value)
		}
	}
	store.shut.Store(true)
	for p := range int32(clusterPartitions) {
		for n := range 2 {
			value := fmt.Sprint("buffered ", n)
			first.appendBuffered(t, p, value)
			b.buffered[p] = append(b.buffered[p], value)
		}
	}
	c.settle() // a heartbeat says how many there are
	b.dead = first.ID()
	first.kill()
	b.disk.Kill()
	first.closeDisk()
	c.settle()
	return b
}

// count is how many records the disk holds.
func (b *bereft) count() int { return 2 * clusterPartitions }

// goOn appends to all partitions by the survivor.
func (b *bereft) goOn(t *testing.T, value string) {
	t.Helper()
	for p := range int32(clusterPartitions) {
		at, err := b.survivor.append("a", p, value)
		if err != nil || at != int64(len(b.committed[p])) {
			t.Fatalf("partition %d: at %d, %v", p, at, err)
		}
		b.committed[p] = append(b.committed[p], value)
	}
}

// check reads all, by a member: first what was committed, then, perhaps, what was buffered.
func (b *bereft) check(t *testing.T, m *member, buffered bool) {
	t.Helper()
	for p := range int32(clusterPartitions) {
		want := slices.Clone(b.committed[p])
		if buffered {
			want = append(want, b.buffered[p]...)
		}
		if got := m.values(t, "a", p); !slices.Equal(got, want) {
			t.Errorf("partition %d has %q, want %q", p, got, want)
		}
	}
}

func (b *bereft) state(t *testing.T) metadata.GatewayState {
	t.Helper()
	rows, err := metadata.ListGateways(t.Context(), b.d.Table, metadata.Strong, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if row.ID == b.dead {
			return row.State
		}
	}
	t.Fatal("it has no row")
	return ""
}

// visit has a gateway come and go, so that whoever patrols on such an occasion does.
func (b *bereft) visit() {
	m := b.start()
	b.settle()
	m.drain()
	b.settle()
}

// TestDiskLost: what was committed is all there; what was acked as buffered is gone, and once its
// disk counts as lost a line of the log and a metric say how much it was.
func TestDiskLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBereft(t, time.Hour)
		b.goOn(t, "after")
		b.visit()
		if got := b.survivor.meters.lostRecords.Load(); got != 0 || b.state(t) != metadata.GatewaySealed {
			t.Errorf("%d records are lost while the disk may come back, its gateway is %s", got, b.state(t))
		}
		time.Sleep(time.Hour)
		b.visit()
		if got := b.survivor.meters.lostRecords.Load(); got != uint64(b.count()) {
			t.Errorf("%d records counted as lost, want %d", got, b.count())
		}
		if got := b.log.with("level=ERROR", "lost with its disk", string(b.dead), fmt.Sprintf("buffered_records_at_its_last_beat=%d", b.count())); len(got) != 1 {
			t.Errorf("it is said %d times: %q", len(got), got)
		}
		if state := b.state(t); state != metadata.GatewayClosed {
			t.Errorf("the dead gateway is %s", state)
		}
		b.visit()
		b.goOn(t, "much later")
		b.check(t, b.survivor, false)
		if got := b.survivor.meters.lostRecords.Load(); got != uint64(b.count()) {
			t.Errorf("%d records counted as lost in the end, want %d", got, b.count())
		}
		b.survivor.drain()
	})
}

// TestDiskElsewhereHoursLater mounts the disk on another host hours after its partitions moved:
// what was acked as buffered is committed at new offsets, once, however often it is tried.
func TestDiskElsewhereHoursLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBereft(t, 0)
		for hour := range 5 {
			b.goOn(t, fmt.Sprint("hour ", hour))
			time.Sleep(time.Hour)
		}
		for n := range 3 {
			m, _ := b.startOn(b.disk)
			waitRecovered(t, m.Gateway)
			b.check(t, m, true)
			b.check(t, b.survivor, true)
			if state := b.state(t); state != metadata.GatewayClosed {
				t.Errorf("round %d: the dead gateway is %s", n, state)
			}
			m.drain()
			m.closeDisk()
		}
		if got := b.survivor.meters.lostRecords.Load(); got != 0 {
			t.Errorf("%d records counted as lost", got)
		}
		b.survivor.drain()
	})
}

// TestDiskComesTooLate mounts the disk when its gateway was closed already: nothing of it is
// appended, and the files are kept and named, at each start that finds some.
func TestDiskComesTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBereft(t, time.Hour)
		b.goOn(t, "after")
		time.Sleep(time.Hour)
		b.visit()
		if state := b.state(t); state != metadata.GatewayClosed {
			t.Fatalf("the dead gateway is %s", state)
		}
		files := buffersOf(t, b.disk, b.dead)
		if len(files) == 0 {
			t.Fatal("nothing is on the disk: this proves nothing")
		}
		for range 2 {
			m, _ := b.startOn(b.disk)
			waitRecovered(t, m.Gateway)
			b.check(t, m, false)
			m.drain()
			m.closeDisk()
		}
		b.check(t, b.survivor, false)
		kept := buffersOf(t, b.disk, b.dead)
		if len(kept) != len(files) {
			t.Errorf("%d files were on the disk, %d are: %q", len(files), len(kept), kept)
		}
		for path, content := range files {
			if !slices.ContainsFunc(valuesOf(kept), func(c []byte) bool { return bytes.Equal(c, content) }) {
				t.Errorf("what was in %s is gone", path)
			}
			if got := b.log.with("level=ERROR", "comes too late", string(b.dead), path); len(got) != 1 {
				t.Errorf("%s is named %d times", path, len(got))
			}
		}
		b.survivor.drain()
	})
}

func valuesOf(m map[string][]byte) (list [][]byte) {
	for _, v := range m {
		list = append(list, v)
	}
	return list
}

// buffersOf reads the files in a gateway's folder of a disk.
func buffersOf(t *testing.T, disk *faultfs.FS, id metadata.GatewayID) map[string][]byte {
	t.Helper()
	folder := "/buffer/" + string(id)
	entries, err := disk.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string][]byte)
	for _, e := range entries {
		content, err := disk.Content(folder + "/" + e.Name)
		if err != nil {
			t.Fatal(err)
		}
		if !e.Dir && strings.Contains(e.Name, segments.BufferSuffix) {
			files[folder+"/"+e.Name] = content
		}
	}
	return files
}
