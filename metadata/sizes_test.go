package metadata_test

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
)

const (
	sizedGateway = metadata.GatewayID("g018bcfe5687b0102030405")
	segmentSize  = 8 << 20
)

// spans is a journal entry for a segment with batches for many partitions of a topic,
// of a log that has run for a while.
func spans(t *testing.T, partitions, batches int, producers bool) []byte {
	t.Helper()
	began := int64(1_700_000_000_000)
	b := metadata.NewEntryBuilder(time.UnixMilli(began + 400))
	span := int64(segmentSize / partitions)
	for n := range partitions {
		p := metadata.NewPartition(metadata.PartitionID{Topic: metadata.TopicID{1, 2, 3}, Number: int32(n)})
		ref := func(number uint64, offsets int32, batches int) *metadata.Change {
			r := &metadata.Reference{Partition: p.ID(), Uploader: sizedGateway, Number: number, Previous: number - 1}
			for i := range batches {
				batch := metadata.Batch{Position: int64(n)*span + int64(i)*(span/int64(batches)), Size: int32(span / int64(batches)), Offsets: offsets, Records: offsets,
					CRC: uint32(n + i), MinTimestamp: began + int64(n%100), MaxTimestamp: began + 150 + int64(n%100), LastTimestamp: began + 150 + int64(n%100),
					ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}
				if producers {
					batch.ProducerID, batch.BaseSequence = 1000+int64(n), int32(0)
					if number > 1 || i > 0 {
						batch.BaseSequence = 50_000_000 + int32(i)*offsets
					}
				}
				r.Batches = append(r.Batches, batch)
			}
			_, c := p.Judge(r)
			return c
		}
		first := ref(1, 50_000_000, 1)
		if err := p.Apply(first, 1); err != nil {
			t.Fatal(err)
		}
		c := ref(2, 40, batches)
		c.Number = 123_456
		b.Add(c)
	}
	return b.Encode()
}

// TestSizes measures what docs/metadata.md says of sizes. A change that costs bytes
// has to be made on purpose.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		partitions, batches int
		producers           bool
		most                float64 // bytes a span
	}{
		{1, 1, false, 96}, {100, 1, false, 47}, {10_000, 1, false, 46}, {10_000, 1, true, 56}, {100, 10, true, 110},
	} {
		size := len(spans(t, c.partitions, c.batches, c.producers))
		each := float64(size) / float64(c.partitions)
		t.Logf("journal entry: %6d spans of %2d batches, producers %-5v: %7d bytes, %6.1f a span", c.partitions, c.batches, c.producers, size, each)
		if each > c.most {
			t.Errorf("%+v: %.1f bytes a span", c, each)
		}
	}
	for _, c := range []struct {
		name                                 string
		commits, checkpoint, producers, most int
	}{
		{"lease row, new", 0, 1 << 30, 0, 55}, {"lease row, quiet", 5, 1, 1, 280}, {"lease row, 63 entries inline", 63, 64, 4, 2100},
		{"lease row, 100 pages", 6400 + 20, 64, 32, 5000}, {"lease row, 255 pages and 63 entries", 255*64 + 63, 64, 32, 9600},
	} {
		size, page := leaseSize(t, c.commits, c.checkpoint, c.producers)
		t.Logf("%-36s: %6d bytes; its newest page %d", c.name, size, page)
		if size > c.most {
			t.Errorf("%s: %d bytes", c.name, size)
		}
	}
}

// TestMessageSizes measures what gateways send each other: whole views are rare, what follows
// on them is small.
func TestMessageSizes(t *testing.T) {
	l := newTimeline(t)
	was := l.state.View()
	for n := range int64(256) {
		was = l.state.View()
		l.append(t, 60_000, []int64{1_700_000_000_000 + n})
	}
	v := l.state.View()
	delta, ok := v.Since(was)
	whole := v.Encode()
	t.Logf("a view of 256 entries: %d bytes; a commit that follows: %d", len(whole), len(delta))
	if !ok || len(delta) > 60 || len(whole) > 256*27 {
		t.Errorf("%v: %d bytes, and %d", ok, len(delta), len(whole))
	}
	row := metadata.EncodeVerdict(metadata.Verdict{Status: metadata.Judged, Next: 1 << 40, Batches: []metadata.BatchVerdict{{Outcome: metadata.Accepted, Offset: 1 << 40, Actual: metadata.NoOffset}}})
	t.Logf("a verdict on one batch: %d bytes", len(row))
	if len(row) > 24 {
		t.Errorf("a verdict takes %d bytes", len(row))
	}
}

// leaseSize makes commits, with a checkpoint after each so many and at the end.
func leaseSize(t *testing.T, commits, every, producers int) (lease, page int) {
	t.Helper()
	table := memtable.New()
	seen := metadata.Observe(table, func(o metadata.Observation) {
		if o.Op != metadata.OpPut {
			return
		}
		size := o.Bytes - len(o.Key.Partition) - len(o.Key.Sort)
		switch {
		case o.Key == metadata.LeaseKey(timelinePartition):
			lease = size
		case o.Key.Sort[:4] == "page":
			page = size
		}
	})
	journal := openJournal(t, seen, sizedGateway)
	state, l, err := metadata.Acquire(t.Context(), seen, timelinePartition, journal, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkpoint := func(n int) {
		plan := state.Checkpoint(l, uint64(n), false)
		if err := plan.Write(t.Context(), seen, l); err != nil {
			t.Fatal(err)
		}
		state.Done(plan)
	}
	sequences := map[int64]int32{}
	for n := 1; n <= commits; n++ {
		stamp := 1_700_000_000_000 + int64(n)*250
		b := metadata.Batch{Position: int64(n%100) * 81_000, Size: 60_000, Offsets: 500, Records: 500, CRC: uint32(n), MinTimestamp: stamp, MaxTimestamp: stamp + 200,
			LastTimestamp: stamp + 200, ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}
		if producers > 0 {
			b.ProducerID = 1000 + int64(n%producers)
			b.BaseSequence = sequences[b.ProducerID]
			sequences[b.ProducerID] += b.Offsets
		}
		_, c := state.Judge(&metadata.Reference{Partition: timelinePartition, Uploader: sizedGateway, Number: uint64(n), Previous: uint64(n - 1), Batches: []metadata.Batch{b}})
		if err := state.Apply(c, uint64(n)); err != nil {
			t.Fatal(err)
		}
		if n%every == 0 {
			checkpoint(n)
		}
	}
	checkpoint(commits + 1)
	return lease, page
}

// TestWorstReference: the largest reference fits a row, whatever its verdicts, and
// what it leaves can be taken over.
func TestWorstReference(t *testing.T) {
	ctx, table := t.Context(), memtable.New()
	journal := openJournal(t, table, sizedGateway)
	state, _, err := metadata.Acquire(ctx, table, timelinePartition, journal, nil)
	if err != nil {
		t.Fatal(err)
	}
	for number := uint64(1); number <= 8; number++ {
		ref := &metadata.Reference{Partition: timelinePartition, Uploader: sizedGateway, Number: number << 40, Previous: (number - 1) << 40}
		for i := range metadata.MaxReferenceBatches {
			b := metadata.Batch{Position: int64(i) * 16_000, Size: 16_000, Offsets: 1 << 20, Records: 1 << 20, CRC: uint32(i), MinTimestamp: int64(i%2) << 41,
				MaxTimestamp: math.MaxInt64 >> 20, LastTimestamp: 5, ProducerID: int64(i)<<40 + int64(number), ExpectedOffset: metadata.NoOffset}
			if i%2 == 1 {
				b.ExpectedOffset = 7 // refused, so that each batch before and after is an entry
			}
			ref.Batches = append(ref.Batches, b)
		}
		_, c := state.Judge(ref)
		b := metadata.NewEntryBuilder(time.Now())
		b.Add(c)
		if err := state.Apply(c, journal.Next()); err != nil {
			t.Fatal(err)
		}
		value := b.Encode()
		if number == 1 {
			t.Logf("%d batches, every other one refused: %d bytes", len(ref.Batches), len(value))
		}
		if _, err := journal.Append(ctx, value); err != nil {
			t.Fatal(err)
		}
	}
	other := openJournal(t, table, "g2")
	taken, lease, err := metadata.Acquire(ctx, table, timelinePartition, other, sealer(table))
	if err != nil {
		t.Fatal(err)
	}
	if taken.Memory() != state.Memory() || lease.Journal != "g2" || lease.Source() != "g2" {
		t.Fatalf("taken over: %+v", lease)
	}
	if taken.Due() {
		t.Error("what was folded is still inline")
	}
}

func sealer(table metadata.Table) func(context.Context, metadata.GatewayID) (*metadata.SealedJournal, error) {
	return func(ctx context.Context, id metadata.GatewayID) (*metadata.SealedJournal, error) {
		if _, err := metadata.Seal(ctx, table, id, "taker"); err != nil {
			return nil, err
		}
		return metadata.ReadSealed(ctx, table, id)
	}
}
