package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/segments/memstore"
)

// testGateway is a gateway that runs in the test.
type testGateway struct {
	*Gateway
	log  *logService
	stop func() error // drains
}

func startGateway(t *testing.T, config Config, d Dependencies) *testGateway {
	t.Helper()
	config.FlushInterval = 5 * time.Millisecond
	return startGatewayWith(t, config, d, func(*Gateway) {})
}

// startGatewayWith starts a gateway after prepare has had its way with it.
func startGatewayWith(t *testing.T, config Config, d Dependencies, prepare func(*Gateway)) *testGateway {
	t.Helper()
	if d.Log == nil {
		d.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	g, err := New(config, d)
	if err != nil {
		t.Fatal(err)
	}
	prepare(g)
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.Run(ctx, func() { close(started) }) }()
	select {
	case <-started:
	case err := <-ended:
		t.Fatalf("gateway did not start: %v", err)
	}
	stopped := false
	r := &testGateway{Gateway: g, log: &logService{g}}
	r.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("gateway did not end well: %v", err)
		}
	})
	return r
}

func memory() Dependencies {
	return Dependencies{Store: memstore.New(), Table: memtable.New()}
}

func (g *testGateway) create(t *testing.T, name string, partitions int32, set map[string]string) *metadata.Topic {
	t.Helper()
	topic, err := g.topics.Create(t.Context(), name, partitions, set, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return topic
}

func (g *testGateway) produce(t *testing.T, topic string, partition int32, records ...batch.Record) *varvev1.ProduceResult {
	t.Helper()
	b := batch.NewBuilder(batch.None)
	for _, r := range records {
		if err := b.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	data, err := b.Build(batch.NoProducer)
	if err != nil {
		t.Fatal(err)
	}
	out, err := g.log.Produce(t.Context(), &varvev1.ProduceRequest{Topic: topic, Partition: &partition, RecordBatch: data})
	if err != nil {
		t.Fatal(err)
	}
	return out.GetResults()[0]
}

func (g *testGateway) readAll(t *testing.T, topic string, partition int32) []*varvev1.ReadRecord {
	t.Helper()
	var all []*varvev1.ReadRecord
	place := &varvev1.Place{At: &varvev1.Place_Earliest{Earliest: true}}
	for {
		out, err := g.log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: topic, Partition: partition, Start: place, Decode: true})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, out.GetRecords()...)
		if out.GetNextOffset() == out.GetHighWatermark() {
			return all
		}
		place = &varvev1.Place{At: &varvev1.Place_Offset{Offset: out.GetNextOffset()}}
	}
}

func TestProduceAndRead(t *testing.T) {
	g := startGateway(t, Config{Exclusive: true}, memory())
	g.create(t, "a", 2, nil)
	for i := range 50 {
		r := g.produce(t, "a", 1, batch.Record{Timestamp: int64(1000 + i), Value: fmt.Appendf(nil, "v%d", i)})
		if r.GetBaseOffset() != int64(i) {
			t.Fatalf("record %d got offset %d", i, r.GetBaseOffset())
		}
	}
	all := g.readAll(t, "a", 1)
	if len(all) != 50 {
		t.Fatalf("read %d records, want 50", len(all))
	}
	for i, r := range all {
		if r.GetOffset() != int64(i) || string(r.GetValue()) != fmt.Sprintf("v%d", i) {
			t.Fatalf("record %d: offset %d, value %q", i, r.GetOffset(), r.GetValue())
		}
	}
	out, err := g.log.ListOffsets(t.Context(), &varvev1.ListOffsetsRequest{Topic: "a", Query: &varvev1.ListOffsetsRequest_AtOrAfter{AtOrAfter: 1033}})
	if err != nil {
		t.Fatal(err)
	}
	if got := out.GetOffsets()[1]; !got.GetFound() || got.GetOffset() != 33 || got.GetTimestamp() != 1033 {
		t.Fatalf("time lookup: %v", got)
	}
}

// TestRestart checks that a clean stop and a start lose nothing, and give offsets
// that go on.
func TestRestart(t *testing.T) {
	d := memory()
	const rounds = 4
	for round := range rounds {
		g := startGateway(t, Config{Exclusive: true}, d)
		if round == 0 {
			g.create(t, "a", 1, nil)
		}
		for i := range 10 {
			r := g.produce(t, "a", 0, batch.Record{Timestamp: 1, Value: []byte("x")})
			if want := int64(round*10 + i); r.GetBaseOffset() != want {
				t.Fatalf("got offset %d, want %d", r.GetBaseOffset(), want)
			}
		}
		if got := len(g.readAll(t, "a", 0)); got != round*10+10 {
			t.Fatalf("read %d records, want %d", got, round*10+10)
		}
		if err := g.stop(); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := metadata.ListGateways(t.Context(), d.Table, metadata.Strong, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if row.State != metadata.GatewayClosed {
			t.Errorf("gateway %s is %s after a clean stop", row.ID, row.State)
		}
	}
}
