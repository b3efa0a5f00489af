package gateway

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/segments/storetest"
)

// TestManyBatchesOfOnePartition gathers more batches while uploads are held up than
// the verdicts on one segment could hold; no two neighbours get the same verdict.
func TestManyBatchesOfOnePartition(t *testing.T) {
	const batches = 49_000
	d := memory()
	g := startGateway(t, Config{Exclusive: true}, d)
	topic := g.create(t, "a", 1, nil)
	data, info, err := g.validate(topic, batchOf(t, []byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	for range uploadsAtOnce {
		g.tenure.Load().intake.slots <- struct{}{}
	}
	waiting := newCall(batches)
	for i := range batches {
		info.ExpectedOffset = metadata.NoOffset
		if i%2 == 1 {
			info.ExpectedOffset = 1 << 40
		}
		waiting.add(i, spanOf(metadata.PartitionID{Topic: topic.ID}), data, info)
	}
	if err := g.tenure.Load().intake.admit(t.Context(), waiting, batches*int64(len(data))); err != nil {
		t.Fatal(err)
	}
	g.tenure.Load().intake.gatherAll(waiting)
	for range uploadsAtOnce {
		<-g.tenure.Load().intake.slots
	}
	<-waiting.done
	for i := range batches {
		want := metadata.BatchVerdict{Outcome: metadata.Accepted, Offset: int64(i / 2), Actual: metadata.NoOffset}
		if i%2 == 1 {
			want = metadata.BatchVerdict{Outcome: metadata.OffsetMismatch, Offset: metadata.NoOffset, Actual: int64(i/2 + 1)}
		}
		if got := waiting.outcome(i); got.err != nil || got.verdict != want {
			t.Fatalf("batch %d: %+v, want %+v", i, got, want)
		}
	}
	if err := g.stop(); err != nil { // all of it fits the lease row
		t.Fatal(err)
	}
	g = startGateway(t, Config{Exclusive: true}, d)
	if r := g.produce(t, "a", 0, batch.Record{Timestamp: 1}); r.GetBaseOffset() != batches/2 {
		t.Errorf("the next offset is %d, want %d", r.GetBaseOffset(), batches/2)
	}
}

// TestDecodedAnswersAreBounded reads batches that inflate to far more than they are
// stored as: a few large records, and very many empty ones.
func TestDecodedAnswersAreBounded(t *testing.T) {
	const maxBytes = 64 << 10
	for name, c := range map[string]struct {
		batches, records, size int
		most                   int // records in an answer
	}{
		"large": {12, 3, 100_000, 3},
		"empty": {12, 10_000, 0, 10_000},
	} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, Config{Exclusive: true}, memory())
			g.create(t, "a", 1, nil)
			for range c.batches {
				b := batch.NewBuilder(batch.Zstd)
				for range c.records {
					if err := b.Append(batch.Record{Timestamp: 1, Value: make([]byte, c.size)}); err != nil {
						t.Fatal(err)
					}
				}
				data, err := b.Build(batch.NoProducer)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := g.log.Produce(t.Context(), &varvev1.ProduceRequest{Topic: "a", Partition: new(int32), RecordBatch: data}); err != nil {
					t.Fatal(err)
				}
			}
			next, end := int64(0), int64(c.batches*c.records)
			for next < end {
				out, err := g.log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a", Decode: true, MaxBytes: maxBytes,
					Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: next}}})
				if err != nil {
					t.Fatal(err)
				}
				if n := len(out.GetRecords()); n == 0 || n > c.most {
					t.Fatalf("%d records at offset %d, want 1 to %d", n, next, c.most)
				}
				for _, r := range out.GetRecords() {
					if r.GetOffset() != next {
						t.Fatalf("offset %d where %d should be", r.GetOffset(), next)
					}
					next++
				}
				if out.GetNextOffset() != next {
					t.Fatalf("the next offset is said to be %d, but %d is", out.GetNextOffset(), next)
				}
			}
		})
	}
}

// TestDecodedAnswersStopAtTheEnd bounds a stream by an offset in the midst of what
// takes several messages.
func TestDecodedAnswersStopAtTheEnd(t *testing.T) {
	g := startGateway(t, Config{Exclusive: true}, memory())
	topic := g.create(t, "a", 1, nil)
	for range 6 {
		g.produce(t, "a", 0, batch.Record{Timestamp: 1, Value: make([]byte, 100)}, batch.Record{Timestamp: 1, Value: make([]byte, 100)})
	}
	for end := int64(1); end <= 12; end++ {
		pos, err := g.place(t.Context(), topic, 0, earliest(), &varvev1.Place{At: &varvev1.Place_Offset{Offset: end}}, g.view)
		if err != nil {
			t.Fatal(err)
		}
		c := &consumer{g: g.Gateway, tenure: g.tenure.Load(), topic: topic, positions: []*position{pos}, decode: true, maxBytes: 150, wake: make(chan struct{}, 1)}
		next, ended := int64(0), false
		c.send = func(m *varvev1.ConsumeResponse) error {
			for _, r := range m.GetRecords() {
				if r.GetOffset() != next {
					t.Errorf("until %d: offset %d where %d should be", end, r.GetOffset(), next)
				}
				next++
			}
			if m.GetNextOffset() != next || ended {
				t.Errorf("until %d: a message says %d at offset %d", end, m.GetNextOffset(), next)
			}
			ended = m.GetEnd()
			return nil
		}
		if err := c.run(t.Context(), nil); err != nil || next != end || !ended {
			t.Errorf("until %d: it ended at %d (said so: %v): %v", end, next, ended, err)
		}
	}
}

// TestRepeatedPartitions asks for one partition very often.
func TestRepeatedPartitions(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	g.create(t, "a", 3, nil)
	out, err := g.log.ListOffsets(t.Context(), &varvev1.ListOffsetsRequest{Topic: "a", Partitions: append(make([]int32, 100_000), 2)})
	if err != nil || len(out.GetOffsets()) != 2 || out.GetOffsets()[0].GetPartition() != 0 || out.GetOffsets()[1].GetPartition() != 2 {
		t.Errorf("%d answers, %v", len(out.GetOffsets()), err)
	}
	stream, err := varvev1connect.NewLogServiceClient(protocols(t, g.url)["connect"]).Consume(t.Context(),
		&varvev1.ConsumeRequest{Topic: "a", Partitions: []*varvev1.PartitionRange{{Partition: 1}, {Partition: 2}, {Partition: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if m, err := stream.Receive(); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("%v %v", m, err)
	}
}

// TestOffsetsAroundAnEnd reads up to offsets within batches, and from behind the end.
func TestOffsetsAroundAnEnd(t *testing.T) {
	g := startGateway(t, Config{Exclusive: true}, memory())
	topic := g.create(t, "a", 1, nil)
	for range 3 {
		g.produce(t, "a", 0, batch.Record{Timestamp: 1}, batch.Record{Timestamp: 1}, batch.Record{Timestamp: 1})
	}
	v, err := g.view(t.Context(), metadata.PartitionID{Topic: topic.ID})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ from, until, next int64 }{{0, 1, 1}, {0, 4, 4}, {4, 5, 5}, {0, 9, 9}, {0, 100, 9}, {9, 100, 9}, {6, 2, 6}, {3, -4, 3}} {
		if _, next, _, err := g.reader.read(t.Context(), v, filter{from: c.from, until: c.until}, 1<<20, nil); err != nil || next != c.next {
			t.Errorf("from %d until %d: next %d, want %d (%v)", c.from, c.until, next, c.next, err)
		}
	}
}

// TestFetchWaits bounds what a Fetch waits for: the next append, not the bucket, however slow.
func TestFetchWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewFaulty(memstore.New())
		g := startGateway(t, Config{Exclusive: true, FreshBytes: 1}, Dependencies{Store: store, Table: memory().Table})
		g.create(t, "a", 1, nil)
		const appends = 50
		for range appends { // of times 10 and 30
			g.produce(t, "a", 0, batch.Record{Timestamp: 10, Value: make([]byte, 1000)}, batch.Record{Timestamp: 30, Value: make([]byte, 1000)})
		}
		const get = 100 * time.Millisecond
		store.Decide(func(c storetest.Call) storetest.Fault {
			if c.Op != storetest.Get {
				return storetest.Fault{}
			}
			return storetest.Fault{Hold: func(ctx context.Context) error {
				select {
				case <-time.After(get):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}}
		})
		fetch := func(req *varvev1.FetchRequest) (*varvev1.FetchResponse, time.Duration) {
			t.Helper()
			began := time.Now()
			req.Topic = "a"
			out, err := g.log.Fetch(t.Context(), req)
			if err != nil || out == nil {
				t.Fatalf("%v %v", out, err)
			}
			return out, time.Since(began)
		}
		at := func(offset int64) *varvev1.Place {
			return &varvev1.Place{At: &varvev1.Place_Offset{Offset: offset}}
		}
		if out, took := fetch(&varvev1.FetchRequest{Start: at(3), MaxWaitMs: 20, MaxBytes: 1}); out.GetNextOffset() != 4 || len(out.GetRecordBatches()) == 0 {
			t.Errorf("with data: %v after %s", out, took)
		}
		if out, took := fetch(&varvev1.FetchRequest{Start: at(2 * appends), MaxWaitMs: 250}); out.GetNextOffset() != 2*appends || took != 250*time.Millisecond {
			t.Errorf("at the end: %v after %s", out, took)
		}
		// No record is of such a time, but only a look into each batch tells.
		out, took := fetch(&varvev1.FetchRequest{Start: at(0), MaxWaitMs: 1000, MaxBytes: 1, Decode: true, TimeRange: &varvev1.TimeRange{Start: 20, End: 25}})
		if next := out.GetNextOffset(); len(out.GetRecords()) != 0 || next == 0 || next == 2*appends || took > time.Second+get {
			t.Errorf("nothing that the filter lets through: %v after %s", out, took)
		}
	})
}
