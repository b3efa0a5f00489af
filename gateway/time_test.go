package gateway

import (
	"context"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments/batch"
)

// stamped is a record as the model keeps it.
type stamped struct {
	offset, timestamp int64
}

// timeModel is brute force: every record of every partition, in a list.
type timeModel struct {
	records [][]stamped // by partition
	start   []int64
}

func (m *timeModel) readable(p int32) []stamped {
	all := m.records[p]
	i := slices.IndexFunc(all, func(r stamped) bool { return r.offset >= m.start[p] })
	if i < 0 {
		return nil
	}
	return all[i:]
}

func (m *timeModel) atOrAfter(p int32, t int64) (stamped, bool) {
	for _, r := range m.readable(p) {
		if r.timestamp >= t {
			return r, true
		}
	}
	return stamped{metadata.NoOffset, metadata.NoTimestamp}, false
}

func (m *timeModel) before(p int32, t int64) (stamped, bool) {
	list := m.readable(p)
	at, ok := m.atOrAfter(p, t)
	for i := len(list) - 1; i >= 0; i-- {
		if !ok || list[i].offset < at.offset {
			return list[i], true
		}
	}
	return stamped{metadata.NoOffset, metadata.NoTimestamp}, false
}

func (m *timeModel) largest(p int32) (stamped, bool) {
	best, found := stamped{metadata.NoOffset, metadata.NoTimestamp}, false
	for _, r := range m.readable(p) {
		if r.timestamp > best.timestamp {
			best, found = r, true
		}
	}
	return best, found
}

const timePartitions = 2

// TestTimeEqualsBruteForce asks a gateway about times and compares with brute
// force, while records come in any order of time, entries move from the journal to
// pages, the log start moves, and the gateway restarts.
func TestTimeEqualsBruteForce(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		d := memory()
		g := startTimeGateway(t, d)
		defer func() { _ = g.stop() }()
		if _, err := g.topics.Create(t.Context(), "a", timePartitions, map[string]string{"timestamp.after.max.ms": "9223372036854775807"}, time.Now()); err != nil {
			r.Fatal(err)
		}
		model := &timeModel{records: make([][]stamped, timePartitions), start: make([]int64, timePartitions)}
		stamps := rapid.SampledFrom([]string{"shuffled", "equal", "newest-first", "far"}).Draw(r, "timestamps")
		clock := int64(1_000_000)
		for range rapid.IntRange(5, 60).Draw(r, "steps") {
			p := rapid.Int32Range(0, timePartitions-1).Draw(r, "partition")
			switch rapid.IntRange(0, 11).Draw(r, "step") {
			default:
				appendTimes(r, g, model, p, stamps, &clock)
			case 8, 9:
				askTimes(r, g, model, p)
			case 10:
				if n := len(model.records[p]); n > 0 {
					model.start[p] = max(model.start[p], rapid.Int64Range(0, int64(n)).Draw(r, "trim"))
					id := metadata.PartitionID{Topic: must(g.topics.Get(t.Context(), "a")).ID, Number: p}
					if _, err := g.router.decide(t.Context(), id, decision{trim: &model.start[p]}); err != nil {
						r.Fatal(err)
					}
				}
			case 11:
				if err := g.stop(); err != nil {
					r.Fatal(err)
				}
				g = startTimeGateway(t, d)
			}
		}
		for p := range int32(timePartitions) {
			askTimes(r, g, model, p)
			askRange(r, g, model, p)
		}
	})
}

func startTimeGateway(t *testing.T, d Dependencies) *testGateway {
	return startGatewayWith(t, Config{Exclusive: true, FlushInterval: time.Nanosecond, CycleInterval: -1}, d, func(g *Gateway) {
		g.tenure.Load().sequencer.fold = foldLimits{rows: 3, bytes: 0, trim: 3}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// appendTimes appends a batch or two with timestamps of the chosen kind.
func appendTimes(r *rapid.T, g *testGateway, m *timeModel, p int32, kind string, clock *int64) {
	b := batch.NewBuilder(rapid.SampledFrom([]batch.Codec{batch.None, batch.Zstd}).Draw(r, "codec"))
	for range rapid.IntRange(1, 5).Draw(r, "records") {
		ts := *clock
		switch kind {
		case "shuffled":
			ts = rapid.Int64Range(0, 50).Draw(r, "timestamp")
		case "newest-first":
			*clock--
		case "far":
			if rapid.IntRange(0, 9).Draw(r, "far") == 0 {
				ts = 1 << 60
			} else {
				*clock++
			}
		}
		if err := b.Append(batch.Record{Timestamp: ts}); err != nil {
			r.Fatal(err)
		}
		m.records[p] = append(m.records[p], stamped{int64(len(m.records[p])), ts})
	}
	data, err := b.Build(batch.NoProducer)
	if err != nil {
		r.Fatal(err)
	}
	if _, err := g.log.Produce(context.Background(), &varvev1.ProduceRequest{Topic: "a", Partition: &p, RecordBatch: data}); err != nil {
		r.Fatal(err)
	}
}

// askTimes compares every question at a time that matters, and at its neighbours.
func askTimes(r *rapid.T, g *testGateway, m *timeModel, p int32) {
	t := int64(0)
	if n := len(m.records[p]); n > 0 {
		t = m.records[p][rapid.IntRange(0, n-1).Draw(r, "near")].timestamp + rapid.Int64Range(-1, 1).Draw(r, "aside")
	}
	ask := func(name string, q *varvev1.ListOffsetsRequest, want stamped, found bool) {
		q.Topic, q.Partitions = "a", []int32{p}
		out, err := g.log.ListOffsets(context.Background(), q)
		if err != nil {
			r.Fatalf("%s %d: %v", name, t, err)
		}
		got := out.GetOffsets()[0]
		if got.GetFound() != found || got.GetOffset() != want.offset || got.GetTimestamp() != want.timestamp {
			r.Fatalf("%s %d in partition %d (log start %d): got %v, want %v %v", name, t, p, m.start[p], got, found, want)
		}
		if got.GetStartOffset() != m.start[p] || got.GetEndOffset() != int64(len(m.records[p])) {
			r.Fatalf("log of partition %d: got %v, want %d to %d", p, got, m.start[p], len(m.records[p]))
		}
	}
	at, ok := m.atOrAfter(p, t)
	ask("at or after", &varvev1.ListOffsetsRequest{Query: &varvev1.ListOffsetsRequest_AtOrAfter{AtOrAfter: t}}, at, ok)
	before, ok := m.before(p, t)
	ask("before", &varvev1.ListOffsetsRequest{Query: &varvev1.ListOffsetsRequest_Before{Before: t}}, before, ok)
	largest, ok := m.largest(p)
	ask("max timestamp", &varvev1.ListOffsetsRequest{Query: &varvev1.ListOffsetsRequest_MaxTimestamp{MaxTimestamp: true}}, largest, ok)
}

// askRange compares a read of a range of time, and a read of everything.
func askRange(r *rapid.T, g *testGateway, m *timeModel, p int32) {
	times := &varvev1.TimeRange{Start: rapid.Int64Range(0, 60).Draw(r, "from")}
	times.End = times.Start + rapid.Int64Range(0, 2_000_000).Draw(r, "length")
	var want []int64
	for _, record := range m.readable(p) {
		if record.timestamp >= times.GetStart() && record.timestamp < times.GetEnd() {
			want = append(want, record.offset)
		}
	}
	var got []int64
	place := &varvev1.Place{At: &varvev1.Place_Earliest{Earliest: true}}
	for {
		out, err := g.log.Fetch(context.Background(), &varvev1.FetchRequest{Topic: "a", Partition: p, Start: place, TimeRange: times, Decode: true, MaxBytes: 1})
		if err != nil {
			r.Fatal(err)
		}
		for _, record := range out.GetRecords() {
			got = append(got, record.GetOffset())
		}
		if out.GetNextOffset() >= out.GetHighWatermark() {
			break
		}
		place = &varvev1.Place{At: &varvev1.Place_Offset{Offset: out.GetNextOffset()}}
	}
	if !slices.Equal(got, want) {
		r.Fatalf("records with %d <= timestamp < %d: got offsets %v, want %v", times.GetStart(), times.GetEnd(), got, want)
	}
}
