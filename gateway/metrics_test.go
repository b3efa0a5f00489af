package gateway

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
)

func TestMetersTellRowsApart(t *testing.T) {
	m := NewMeters()
	table := m.observeTable(memtable.New())
	ctx := context.Background()
	put := func(partition, sort string) {
		row := metadata.Row{Key: metadata.Key{Partition: partition, Sort: sort}, Stamp: metadata.Stamp{Epoch: 1}, Nonce: 1, Value: make([]byte, 10)}
		if err := table.Put(ctx, row, metadata.IfAbsent()); err != nil {
			t.Fatal(err)
		}
	}
	put("journal/g1", openingRow)
	put("journal/g1", "0000000000000001")
	put("journal/g1", "0000000000000002")
	put("partition/ab/0", "lease")
	put("gateways", "g1")
	put("topics", "a")
	if err := table.Delete(ctx, metadata.Key{Partition: "journal/g1", Sort: "0000000000000001"}, metadata.Condition{}); err != nil {
		t.Fatal(err)
	}
	if err := table.Delete(ctx, metadata.Key{Partition: "partition/ab/0", Sort: "page/1"}, metadata.Condition{}); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Get(ctx, metadata.Key{Partition: "topics", Sort: "absent"}, metadata.Strong); err == nil {
		t.Fatal("an absent row was read")
	}
	if _, err := table.Range(ctx, metadata.Range{Partition: "gateways"}); err != nil {
		t.Fatal(err)
	}
	u := m.Usage()
	if u.GetCommitWrites() != 2 || u.GetCommitBytes() == 0 || u.GetCheckpointWrites() != 2 || u.GetBeatWrites() != 1 || u.GetTableWrites() != 8 || u.GetTableReads() != 2 {
		t.Errorf("%v", u)
	}
	if n := m.tableErrors[metadata.OpGet].Load(); n != 0 {
		t.Errorf("an absent row counts as %d errors", n)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := table.Get(ended, metadata.Key{Partition: "topics", Sort: "a"}, metadata.Strong); err == nil || m.tableErrors[metadata.OpGet].Load() != 1 {
		t.Errorf("a failure (%v) counts as %d", err, m.tableErrors[metadata.OpGet].Load())
	}
}

func TestMetersOfTheStore(t *testing.T) {
	m := NewMeters()
	store := m.observeStore(memstore.New())
	ctx := context.Background()
	if err := store.Put(ctx, "a", segments.NewBody([]byte("12345"))); err != nil {
		t.Fatal(err)
	}
	if err := store.Put(ctx, "a", segments.NewBody([]byte("12345"))); err == nil {
		t.Fatal("an object was replaced")
	}
	if _, _, err := store.Get(ctx, "a", 1, 3); err != nil {
		t.Fatal(err)
	}
	if _, err := store.List(ctx, "", "", 1); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	u := m.Usage()
	if u.GetObjectPuts() != 2 || u.GetObjectPutBytes() != 5 || u.GetObjectGets() != 1 || u.GetObjectGetBytes() != 3 || u.GetObjectLists() != 1 || u.GetObjectDeletes() != 1 {
		t.Errorf("%v", u)
	}
	if n := m.store.put.errors.Load(); n != 0 {
		t.Errorf("an object that exists counts as %d errors", n)
	}
}

func TestMetricsPage(t *testing.T) {
	m := NewMeters()
	m.flushed(3, 100)
	m.cycled(3, 1, 50)
	m.checkpointed(2, 80)
	m.appended(7, 90)
	m.acked(segments.AckBuffered, time.Millisecond)
	m.acked(segments.AckCommitted, time.Second)
	m.lookedUp(time.Millisecond)
	m.recovered(4)
	m.followers(2)
	m.followers(-1)
	m.gauge("queue_bytes", "Bytes that wait.", func() float64 { return 42 })
	w := httptest.NewRecorder()
	m.handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		"varve_flushes_total 1", "varve_flushed_spans_total 3", "varve_flushed_bytes_total 100",
		"varve_cycles_total 1", "varve_cycle_references_total 3", "varve_cycle_rows_total 1", "varve_cycle_bytes_total 50",
		"varve_checkpoints_total 1", "varve_checkpoint_rows_total 2", "varve_checkpoint_bytes_total 80",
		"varve_appends_total 1", "varve_appended_records_total 7", "varve_appended_bytes_total 90",
		`varve_ack_seconds_count{level="buffered"} 1`, `varve_ack_seconds_sum{level="committed"} 1`,
		"varve_lookup_seconds_count 1", "varve_recovered_batches_total 4", "varve_followers 1", "varve_queue_bytes 42",
	} {
		if !strings.Contains(w.Body.String(), "\n"+want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestMetersDoNotAllocate(t *testing.T) {
	m := NewMeters()
	observation := metadata.Observation{Op: metadata.OpPut, Key: metadata.Key{Partition: "journal/g1", Sort: "1"}, Rows: 1, Bytes: 10}
	if n := testing.AllocsPerRun(100, func() {
		m.flushed(1, 1)
		m.cycled(1, 1, 1)
		m.appended(1, 1)
		m.acked(segments.AckCommitted, time.Millisecond)
		m.followers(1)
		m.tableCall(observation)
		m.storeCall(segments.OpPut, 1, time.Millisecond, nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestStatusBytes(t *testing.T) {
	const status = "Name:\tvarve\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n"
	if a, b, c := statusBytes(status, "VmRSS:"), statusBytes(status, "VmHWM:"), statusBytes(status, "VmSwap:"); a != 1<<20 || b != 2<<20 || c != 0 {
		t.Error(a, b, c)
	}
}
