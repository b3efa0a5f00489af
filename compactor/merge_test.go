package compactor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/segments/storetest"
)

const testCluster = segments.ClusterID("c1")

// drawn is partitions whose batches lie in segments that gateways uploaded, as an index has them.
type drawn struct {
	store   segments.Store
	entries map[metadata.PartitionID][]metadata.Entry
	ends    map[metadata.PartitionID]int64
	records map[metadata.PartitionID][]string // what is read, offset by offset
}

// draw makes segments with batches of several partitions each, of all codecs. sparse: some records are gone.
func draw(t *rapid.T, sparse bool) *drawn {
	d := &drawn{store: memstore.New(), entries: make(map[metadata.PartitionID][]metadata.Entry), ends: make(map[metadata.PartitionID]int64), records: make(map[metadata.PartitionID][]string)}
	for number := range uint64(rapid.IntRange(2, 8).Draw(t, "segments")) {
		builder := segments.NewBuilder(testCluster, segments.GatewayID(uploader), number+1)
		offsets := make(map[metadata.PartitionID][]int64)
		for n := range rapid.IntRange(1, 4).Draw(t, "partitions") {
			id := partitionID(n)
			for range rapid.IntRange(1, 4).Draw(t, "batches") {
				d.batch(t, builder, id, offsets, sparse)
			}
		}
		object, err := builder.Build(func(segments.SpanID) uint64 { return 0 })
		if err != nil {
			t.Fatal(err)
		}
		if err := d.store.Put(context.Background(), object.Key(), object); err != nil {
			t.Fatal(err)
		}
		for _, s := range object.Directory.Spans {
			d.index(metadata.PartitionID{Number: s.Partition}, number+1, &s, offsets[metadata.PartitionID{Number: s.Partition}])
		}
	}
	return d
}

// batch adds a batch to a partition.
func (d *drawn) batch(t *rapid.T, builder *segments.Builder, id metadata.PartitionID, offsets map[metadata.PartitionID][]int64, sparse bool) {
	b := batch.NewBuilder(rapid.SampledFrom([]batch.Codec{batch.None, batch.Zstd, batch.Snappy, batch.LZ4, batch.Gzip}).Draw(t, "codec"))
	base := d.ends[id]
	if sparse {
		base += rapid.Int64Range(0, 2).Draw(t, "gap")
	}
	info := segments.BatchInfo{ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, ExpectedOffset: -1}
	count := rapid.IntRange(1, 5).Draw(t, "records")
	for i := range count {
		at := rapid.Int64Range(0, 1000).Draw(t, "time")
		value := fmt.Sprintf("%v@%d", id, base+int64(i))
		if err := b.Append(batch.Record{Timestamp: at, Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			info.MinTimestamp, info.MaxTimestamp = at, at
		}
		info.MinTimestamp, info.MaxTimestamp, info.LastTimestamp = min(info.MinTimestamp, at), max(info.MaxTimestamp, at), at
		d.records[id] = append(d.records[id], fmt.Sprintf("%d %d %s", base+int64(i), at, value))
	}
	data, err := b.Build(batch.NoProducer)
	if err != nil {
		t.Fatal(err)
	}
	if sparse {
		batch.SealPlace(data, base) // as a compaction by key leaves them
	}
	h, err := batch.ParseHeader(data)
	if err != nil {
		t.Fatal(err)
	}
	info.Offsets, info.Records, info.CRC = int32(count), int32(count), h.CRC
	if err := builder.Add(segments.SpanID{Partition: id.Number}, data, info); err != nil {
		t.Fatal(err)
	}
	offsets[id] = append(offsets[id], base)
	d.ends[id] = base + int64(count)
}

func (d *drawn) next(id metadata.PartitionID) int64 {
	if n := len(d.entries[id]); n > 0 {
		return d.entries[id][n-1].End
	}
	return 0
}

// index adds the entry of a span.
func (d *drawn) index(id metadata.PartitionID, number uint64, s *segments.Span, offsets []int64) {
	var batches []metadata.Batch
	for _, b := range s.Batches {
		batches = append(batches, metadata.Batch{Position: b.Position, Size: b.Size, Offsets: b.Offsets, Records: b.Records,
			MinTimestamp: b.MinTimestamp, MaxTimestamp: b.MaxTimestamp, LastTimestamp: b.LastTimestamp, CRC: b.CRC})
	}
	end := offsets[len(offsets)-1] + int64(s.Batches[len(s.Batches)-1].Offsets)
	d.entries[id] = append(d.entries[id], metadata.MergedEntry(uploader, number, batches, offsets, d.next(id), end))
}

// stretches are all partitions, whole.
func (d *drawn) stretches() []*stretch {
	var list []*stretch
	for n := range 4 {
		if entries := d.entries[partitionID(n)]; len(entries) > 0 {
			list = append(list, &stretch{partition: partitionID(n), entries: entries, aged: 1 << 40, settled: 1 << 40})
		}
	}
	return list
}

func (d *drawn) merger() *merger {
	return &merger{store: d.store, cluster: testCluster, pace: func(context.Context, int64) error { return nil }}
}

// read returns the records of an entry, as a reader finds them.
func (d *drawn) read(e *metadata.Entry) ([]string, error) {
	data, _, err := d.store.Get(context.Background(), segments.ObjectKey(testCluster, segments.GatewayID(e.Gateway), e.Number), e.Position, e.Length)
	if err != nil {
		return nil, err
	}
	var list []string
	next := e.First
	for b, err := range batch.Split(data) {
		if err != nil {
			return nil, err
		}
		h, err := batch.Check(b)
		if err != nil {
			return nil, err
		}
		if !e.Gateway.IsMerger() && e.Records == e.End-e.First {
			batch.SetBaseOffset(b, next, 0)
			h.BaseOffset = next
		}
		for r, err := range batch.Records(b, batch.Limits{}) {
			if err != nil {
				return nil, err
			}
			list = append(list, fmt.Sprintf("%d %d %s", r.Offset, r.Timestamp, r.Value))
		}
		next = h.EndOffset()
	}
	return list, nil
}

// TestMergeProperties merges whatever there is, then merges that: bytes, offsets, times and sums stay.
func TestMergeProperties(t *testing.T) {
	for _, sparse := range []bool{false, true} {
		t.Run(fmt.Sprintf("sparse=%v", sparse), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				d := draw(t, sparse)
				last := uint64(0)
				for range 2 {
					target := rapid.Int64Range(300, 5000).Draw(t, "target")
					d.mergeAll(t, target, &last)
					d.check(t)
				}
			})
		})
	}
}

func (d *drawn) mergeAll(t *rapid.T, target int64, last *uint64) {
	stretches := d.stretches()
	for _, s := range stretches {
		s.old = s.aged
	}
	done := make(map[*stretch][]replacement)
	jobs, _ := plan(target, stretches)
	for _, j := range jobs {
		out, err := d.merger().run(context.Background(), metadata.MergerID(uploader), func() uint64 { *last++; return *last }, &j)
		if err != nil || len(out.asides) > 0 {
			t.Fatal(err, out)
		}
		for _, r := range out.replacements {
			done[r.stretch] = append(done[r.stretch], r)
		}
	}
	for s, list := range done {
		slices.SortFunc(list, func(a, b replacement) int { return a.from - b.from })
		d.entries[s.partition] = replaced(s.entries, list)
	}
}

// check reads all, and holds each entry against the directory of its segment.
func (d *drawn) check(t *rapid.T) {
	for id, entries := range d.entries {
		var list []string
		next := int64(0)
		for i := range entries {
			e := &entries[i]
			if e.First != next {
				t.Fatalf("the entries of %v leave out offsets from %d on", id, next)
			}
			next = e.End
			records, err := d.read(e)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, records...)
			d.compare(t, id, e)
		}
		if !slices.Equal(list, d.records[id]) {
			t.Fatalf("%v: %q is read, %q were written", id, list, d.records[id])
		}
	}
}

func (d *drawn) compare(t *rapid.T, id metadata.PartitionID, e *metadata.Entry) {
	directory, err := segments.ReadDirectory(context.Background(), d.store, segments.ObjectKey(testCluster, segments.GatewayID(e.Gateway), e.Number))
	if err != nil {
		t.Fatal(err)
	}
	span, ok := directory.Span(segments.SpanID{Topic: segments.TopicID(id.Topic), Partition: id.Number})
	if !ok {
		t.Fatal("the directory lacks a span")
	}
	var is metadata.Entry
	for _, b := range span.Batches {
		if b.Position < e.Position || b.Position >= e.Position+e.Length {
			continue
		}
		if is.Length == 0 {
			is.MinTimestamp, is.MaxTimestamp = b.MinTimestamp, b.MaxTimestamp
		}
		is.Length += int64(b.Size)
		is.Records += int64(b.Records)
		is.MinTimestamp, is.MaxTimestamp, is.LastTimestamp = min(is.MinTimestamp, b.MinTimestamp), max(is.MaxTimestamp, b.MaxTimestamp), b.LastTimestamp
	}
	if is.Length != e.Length || is.Records != e.Records || is.MinTimestamp != e.MinTimestamp || is.MaxTimestamp != e.MaxTimestamp || is.LastTimestamp != e.LastTimestamp {
		t.Fatalf("the directory of %v says %+v, the index %+v", id, is, *e)
	}
}

// TestReadsTogether: partitions that lie side by side are read with one request an object, and no further one where timestamps
// follow from what is known.
func TestReadsTogether(t *testing.T) {
	faulty := storetest.NewFaulty(memstore.New())
	d := &drawn{store: faulty, entries: make(map[metadata.PartitionID][]metadata.Entry)}
	const objects, partitions = 10, 20
	for number := range uint64(objects) {
		builder := segments.NewBuilder(testCluster, segments.GatewayID(uploader), number+1)
		for n := range partitions {
			b := batch.NewBuilder(batch.None)
			for i := range 3 {
				must(t, b.Append(batch.Record{Timestamp: int64(i), Value: make([]byte, 100)}))
			}
			data, err := b.Build(batch.NoProducer)
			must(t, err)
			h, err := batch.ParseHeader(data)
			must(t, err)
			must(t, builder.Add(segments.SpanID{Partition: int32(n)}, data, segments.BatchInfo{Offsets: 3, Records: 3, CRC: h.CRC, MaxTimestamp: 2, LastTimestamp: 2,
				ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, ExpectedOffset: -1}))
		}
		object, err := builder.Build(func(segments.SpanID) uint64 { return 0 })
		must(t, err)
		must(t, faulty.Put(t.Context(), object.Key(), object))
		for _, s := range object.Directory.Spans {
			d.index(partitionID(int(s.Partition)), number+1, &s, []int64{3 * int64(number)})
		}
	}
	var stretches []*stretch
	for n := range partitions {
		stretches = append(stretches, &stretch{partition: partitionID(n), entries: d.entries[partitionID(n)], aged: 1 << 40})
	}
	jobs, _ := plan(testTarget, stretches)
	if len(jobs) != 1 {
		t.Fatalf("%d jobs", len(jobs))
	}
	out, err := d.merger().run(t.Context(), metadata.MergerID(uploader), func() uint64 { return 1 }, &jobs[0])
	must(t, err)
	if len(out.replacements) != partitions || faulty.Calls(storetest.Get) != objects || faulty.Calls(storetest.Put) != objects+1 {
		t.Errorf("%d entries, from %d requests", len(out.replacements), faulty.Calls(storetest.Get))
	}
}

// TestTopicsPayForMerges: what a merge, or a compaction by key, reads is charged to the topics whose records it reads, by their bytes.
func TestTopicsPayForMerges(t *testing.T) {
	ledger := bill.NewLedger(time.Now())
	store := memstore.New()
	large, small := metadata.PartitionID{Topic: metadata.TopicID{1}}, metadata.PartitionID{Topic: metadata.TopicID{2}}
	sizes := map[metadata.PartitionID]int{large: 9000, small: 1000}
	entries := make(map[metadata.PartitionID][]metadata.Entry)
	var bytes int64
	for number := range uint64(4) {
		builder := segments.NewBuilder(testCluster, segments.GatewayID(uploader), number+1)
		for _, id := range []metadata.PartitionID{large, small} {
			b := batch.NewBuilder(batch.None)
			must(t, b.Append(batch.Record{Timestamp: 1, Value: make([]byte, sizes[id])}))
			data, err := b.Build(batch.NoProducer)
			must(t, err)
			h, err := batch.ParseHeader(data)
			must(t, err)
			must(t, builder.Add(segments.SpanID{Topic: segments.TopicID(id.Topic)}, data, infoOf(h)))
		}
		object, err := builder.Build(func(segments.SpanID) uint64 { return 0 })
		must(t, err)
		must(t, store.Put(t.Context(), object.Key(), object))
		for _, s := range object.Directory.Spans {
			b, id := s.Batches[0], metadata.PartitionID{Topic: metadata.TopicID(s.Topic)}
			entries[id] = append(entries[id], metadata.MergedEntry(uploader, number+1, []metadata.Batch{{Position: b.Position, Size: b.Size, Offsets: 1, Records: 1,
				MinTimestamp: 1, MaxTimestamp: 1, LastTimestamp: 1, CRC: b.CRC}}, []int64{int64(number)}, int64(number), int64(number)+1))
			bytes += s.Length
		}
	}
	d := &drawn{store: ledger.Store(store)}
	jobs, _ := plan(testTarget, []*stretch{{partition: large, entries: entries[large], aged: 1 << 40}, {partition: small, entries: entries[small], aged: 1 << 40}})
	if len(jobs) != 1 {
		t.Fatalf("%d jobs", len(jobs))
	}
	_, err := d.merger().run(t.Context(), metadata.MergerID(uploader), func() uint64 { return 1 }, &jobs[0])
	must(t, err)
	r := entryReader{store: d.store, cluster: testCluster, topic: small.Topic, pace: d.merger().pace}
	must(t, r.read(t.Context(), &entries[small][0], func([]byte) error { return nil }))
	s := ledger.Statement()
	if got := s.Cluster[bill.OtherGets]; got != 0 {
		t.Errorf("the cluster pays for %d GETs", got)
	}
	pays := func(id metadata.PartitionID) (gets, bytes float64) {
		u := s.Topics[id.Topic]
		return u.Whole(bill.MergeGets), float64(u[bill.BytesGot])
	}
	largeGets, largeBytes := pays(large)
	smallGets, smallBytes := pays(small)
	alone := float64(entries[small][0].Length)
	if total := largeGets + smallGets; total < 4.99 || total > 5.01 || largeGets < 3.5 || smallGets < 1.3 || int64(largeBytes+smallBytes-alone) != bytes ||
		largeBytes < 8*(smallBytes-alone) {
		t.Errorf("GETs of %v and %v, bytes of %v and %v, of %d", largeGets, smallGets, largeBytes, smallBytes, bytes)
	}
}

// TestOtherBatches: batches that are whole, and not those that the index means, are damage.
func TestOtherBatches(t *testing.T) {
	b := batch.NewBuilder(batch.None)
	for i := range int64(3) {
		must(t, b.Append(batch.Record{Timestamp: i, Value: []byte("a")}))
	}
	data, err := b.Build(batch.NoProducer)
	must(t, err)
	h, err := batch.ParseHeader(data)
	must(t, err)
	h.BaseOffset = 5
	right := metadata.Entry{First: 5, End: 8, Records: 3, Length: int64(len(data)), MaxTimestamp: 2, LastTimestamp: 2, Sum: batch.ContentSum(h)}
	if _, err := place(&right, slices.Clone(data)); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*metadata.Entry){
		"sum":     func(e *metadata.Entry) { e.Sum++ },
		"place":   func(e *metadata.Entry) { e.First, e.End = 6, 9 },
		"end":     func(e *metadata.Entry) { e.End, e.Records = 7, 2 },
		"length":  func(e *metadata.Entry) { e.Length++ },
		"records": func(e *metadata.Entry) { e.Records = 2 },
		"times":   func(e *metadata.Entry) { e.MaxTimestamp = 3 },
	} {
		e := right
		change(&e)
		s := &source{entry: &e}
		s.parse(slices.Clone(data), nil)
		s.compare()
		if !errors.Is(s.fault, segments.ErrCorrupt) {
			t.Errorf("another %s: %v", name, s.fault)
		}
	}
}

// TestOwnFirstTry: the answer to a put is lost, and the next try finds the segment.
func TestOwnFirstTry(t *testing.T) {
	store := memstore.New()
	object := func(value string) *segments.Object {
		b := batch.NewBuilder(batch.None)
		must(t, b.Append(batch.Record{Value: []byte(value)}))
		data, err := b.Build(batch.NoProducer)
		must(t, err)
		h, err := batch.ParseHeader(data)
		must(t, err)
		builder := segments.NewBuilder(testCluster, "g1-m", 1)
		must(t, builder.Add(segments.SpanID{}, data, infoOf(h)))
		o, err := builder.Build(func(segments.SpanID) uint64 { return 0 })
		must(t, err)
		return o
	}
	m := &merger{store: store, cluster: testCluster, pace: func(context.Context, int64) error { return nil }}
	must(t, m.put(t.Context(), object("a")))
	must(t, m.put(t.Context(), object("a")))
	if err := m.put(t.Context(), object("b")); !errors.Is(err, segments.ErrCorrupt) {
		t.Errorf("another object under the name: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkMerge makes a segment of 64 MiB from 64 objects in memory, with a batch of 16 KiB of each of 64 partitions in each.
func BenchmarkMerge(b *testing.B) {
	d := &drawn{store: memstore.New(), entries: make(map[metadata.PartitionID][]metadata.Entry)}
	const objects, partitions = 64, 64
	fatal := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	for number := range uint64(objects) {
		builder := segments.NewBuilder(testCluster, segments.GatewayID(uploader), number+1)
		for n := range partitions {
			made := batch.NewBuilder(batch.None)
			fatal(made.Append(batch.Record{Timestamp: 1, Value: make([]byte, 16<<10-100)}))
			data, err := made.Build(batch.NoProducer)
			fatal(err)
			h, err := batch.ParseHeader(data)
			fatal(err)
			fatal(builder.Add(segments.SpanID{Partition: int32(n)}, data, infoOf(h)))
		}
		object, err := builder.Build(func(segments.SpanID) uint64 { return 0 })
		fatal(err)
		fatal(d.store.Put(b.Context(), object.Key(), object))
		for _, s := range object.Directory.Spans {
			d.index(partitionID(int(s.Partition)), number+1, &s, []int64{int64(number)})
		}
	}
	var stretches []*stretch
	for n := range partitions {
		stretches = append(stretches, &stretch{partition: partitionID(n), entries: d.entries[partitionID(n)], aged: 1 << 40})
	}
	jobs, _ := plan(testTarget, stretches)
	b.SetBytes(jobs[0].bytes)
	b.ReportAllocs()
	number := uint64(0)
	for b.Loop() {
		out, err := d.merger().run(b.Context(), metadata.MergerID(uploader), func() uint64 { number++; return number }, &jobs[0])
		fatal(err)
		b.StopTimer()
		fatal(d.store.Delete(b.Context(), segments.ObjectKey(testCluster, "g1-m", number)))
		_ = out
		b.StartTimer()
	}
}
