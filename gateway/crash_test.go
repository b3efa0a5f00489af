package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/metadata/tabletest"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/segments/faultfs"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/segments/storetest"
)

var errDead = errors.New("the process is dead")

// life is the time between a start and a crash: after it nothing that the gateway
// still does has any effect.
type life struct{ over atomic.Bool }

type mortalStore struct {
	segments.Store
	life *life
}

func (s mortalStore) Put(ctx context.Context, key string, body segments.Body) error {
	if s.life.over.Load() {
		return fmt.Errorf("%w: %w", segments.ErrUnavailable, errDead)
	}
	return s.Store.Put(ctx, key, body)
}

type mortalTable struct {
	metadata.Table
	life *life
}

func (t mortalTable) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	if t.life.over.Load() {
		return fmt.Errorf("%w: %w", metadata.ErrUnknown, errDead)
	}
	return t.Table.Put(ctx, row, cond)
}

func (t mortalTable) Delete(ctx context.Context, key metadata.Key, cond metadata.Condition) error {
	if t.life.over.Load() {
		return fmt.Errorf("%w: %w", metadata.ErrUnknown, errDead)
	}
	return t.Table.Delete(ctx, key, cond)
}

// witness knows what producers were told.
type witness struct {
	mu        sync.Mutex
	committed map[string]place // by value
	buffered  map[string]int32
	unknown   map[string]int32
	refused   map[string]int32
}

type place struct {
	partition int32
	offset    int64
}

// TestCrashes starts gateways on one bucket, table and disk, one after the other,
// and crashes each at a random moment while faults fire, with several kinds of
// producers under way. In the end everything that was acked is there, once.
func TestCrashes(t *testing.T) {
	for seed := range uint64(crashSeeds) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			crashes(t, seed, seed%3 != 0)
		})
	}
}

const (
	crashSeeds      = 12
	crashPartitions = 3
	crashRounds     = 8
)

func crashes(t *testing.T, seed uint64, faults bool) {
	random := rand.New(rand.NewPCG(seed, 1))
	disk, store, table := faultfs.New(), storetest.NewFaulty(memstore.New()), tabletest.NewFaulty(memtable.New(), nil)
	w := &witness{committed: map[string]place{}, buffered: map[string]int32{}, unknown: map[string]int32{}, refused: map[string]int32{}}
	var serial atomic.Int64
	for round := range crashRounds {
		l := &life{}
		store.Decide(nil)
		table.SetPlan(nil)
		buffers, err := segments.OpenBufferDir(disk, "/buffer", segments.BufferConfig{Reserve: 1})
		if err != nil {
			t.Fatal(err)
		}
		g, err := New(Config{Exclusive: true, FlushInterval: 2 * time.Millisecond, CycleInterval: -1, DrainTime: time.Nanosecond, SegmentBytes: 64 << 10},
			Dependencies{Store: mortalStore{store, l}, Table: mortalTable{table, l}, Buffers: buffers, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if seed%2 == 0 { // checkpoints and trims at every turn
			g.tenure.Load().sequencer.fold = foldLimits{rows: 2, bytes: 0, trim: 2}
		}
		ctx, cancel := context.WithCancel(t.Context())
		started, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- g.Run(ctx, func() { close(started) }) }()
		select {
		case <-started:
		case err := <-ended:
			t.Fatalf("round %d: gateway did not start: %v", round, err)
		}
		service := &logService{g}
		if round == 0 {
			if _, err := g.topics.Create(ctx, "a", crashPartitions, nil, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		if faults {
			injectFaults(random, store, table)
		}
		if round == crashRounds-1 {
			store.Decide(nil)
			table.SetPlan(nil)
			table.Release()
			store.Settle()
			checkWitness(t, g, service, w)
			cancel()
			<-ended
			return
		}
		var producers sync.WaitGroup
		for p := range 6 {
			r := rand.New(rand.NewPCG(random.Uint64(), uint64(p)))
			producers.Go(func() { produceUntilDead(ctx, service, r, p, &serial, w) })
		}
		time.Sleep(time.Duration(20+random.IntN(60)) * time.Millisecond) // the moment of the crash is part of the test
		for wait := 0; round == crashRounds-2 && !w.proves() && wait < 5000; wait++ {
			time.Sleep(time.Millisecond) // on a machine that is busy with other things
		}
		l.over.Store(true)
		disk.Crash(func(n int) int { return random.IntN(n + 1) })
		cancel()
		producers.Wait()
		<-ended
		buffers.Close()
	}
}

// injectFaults makes calls to bucket and table fail now and then, before or after
// their effect.
func injectFaults(random *rand.Rand, store *storetest.Faulty, table *tabletest.Faulty) {
	r := rand.New(rand.NewPCG(random.Uint64(), 2))
	store.Decide(func(storetest.Call) storetest.Fault {
		switch r.IntN(12) {
		case 0:
			return storetest.Fault{Before: segments.ErrUnavailable}
		case 1:
			return storetest.Fault{After: segments.ErrUnavailable}
		}
		return storetest.Fault{}
	})
	q := rand.New(rand.NewPCG(random.Uint64(), 3))
	table.SetPlan(func(tabletest.Call) tabletest.Fault {
		switch q.IntN(40) {
		case 0:
			return tabletest.Fault{Kind: tabletest.Unavailable}
		case 1:
			return tabletest.Fault{Kind: tabletest.LostAnswer}
		case 2:
			return tabletest.Fault{Kind: tabletest.Vanished}
		}
		return tabletest.Fault{}
	})
}

// produceUntilDead appends records with values of their own until the gateway ends.
func produceUntilDead(ctx context.Context, s *logService, r *rand.Rand, kind int, serial *atomic.Int64, w *witness) {
	id, sequence := metadata.NoProducer, int32(-1)
	partition := r.Int32N(crashPartitions)
	if kind%3 == 1 {
		out, err := s.InitProducer(ctx, nil)
		if err != nil {
			return
		}
		id, sequence = out.GetProducerId(), 0
	}
	for ctx.Err() == nil {
		if id == metadata.NoProducer {
			partition = r.Int32N(crashPartitions)
		}
		b := batch.NewBuilder(batch.None)
		var values []string
		for range 1 + r.IntN(3) {
			values = append(values, fmt.Sprintf("%d", serial.Add(1)))
			if b.Append(batch.Record{Timestamp: int64(r.IntN(1000)), Value: []byte(values[len(values)-1])}) != nil {
				return
			}
		}
		options := batch.NoProducer
		if id != metadata.NoProducer {
			options = batch.BuildOptions{ProducerID: id, BaseSequence: sequence}
		}
		data, err := b.Build(options)
		if err != nil {
			return
		}
		request := &varvev1.ProduceRequest{Topic: "a", Partition: &partition, RecordBatch: data}
		if kind%3 == 2 {
			request.Acks = varvev1.Acks_ACKS_BUFFERED
		}
		for {
			out, err := s.Produce(ctx, request)
			w.note(values, partition, kind, out, err)
			if err == nil {
				if id != metadata.NoProducer {
					sequence += int32(len(values))
				}
				break
			}
			if ctx.Err() != nil || id == metadata.NoProducer {
				break
			}
		}
	}
}

func (w *witness) note(values []string, partition int32, kind int, out *varvev1.ProduceResponse, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, v := range values {
		switch {
		case err == nil && kind%3 == 2:
			w.buffered[v] = partition
			delete(w.unknown, v)
		case err == nil:
			w.committed[v] = place{partition, out.GetResults()[0].GetBaseOffset() + int64(i)}
			delete(w.unknown, v)
		case classify(err).info.GetUnknownOutcome():
			w.unknown[v] = partition
		default:
			if _, doubt := w.unknown[v]; !doubt {
				w.refused[v] = partition
			}
		}
	}
}

// proves says that something of each kind was acked.
func (w *witness) proves() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.committed) > 0 && len(w.buffered) > 0
}

// checkWitness reads everything and compares.
func checkWitness(t *testing.T, g *Gateway, s *logService, w *witness) {
	t.Helper()
	waitRecovered(t, g)
	found := map[string]place{}
	r := &testGateway{Gateway: g, log: s}
	for p := range int32(crashPartitions) {
		for i, record := range r.readAll(t, "a", p) {
			if record.GetOffset() != int64(i) {
				t.Fatalf("partition %d: offset %d where %d should be", p, record.GetOffset(), i)
			}
			v := string(record.GetValue())
			if at, twice := found[v]; twice {
				t.Errorf("duplicate: %s at %v and at %d/%d", v, at, p, record.GetOffset())
			}
			found[v] = place{p, record.GetOffset()}
		}
	}
	for v, at := range w.committed {
		if found[v] != at {
			t.Errorf("lost or moved: %s was acked at %v, found %v", v, at, found[v])
		}
	}
	for v, p := range w.buffered {
		if at, ok := found[v]; !ok || at.partition != p {
			t.Errorf("lost: %s was acked as buffered", v)
		}
	}
	for v := range w.refused {
		if _, ok := found[v]; ok {
			if _, committed := w.committed[v]; !committed {
				t.Errorf("aborted read: %s was refused for certain, but is at %v", v, found[v])
			}
		}
	}
	t.Logf("%d committed, %d buffered, %d unknown, %d refused, %d found", len(w.committed), len(w.buffered), len(w.unknown), len(w.refused), len(found))
	if !w.proves() {
		t.Error("nothing was appended: this run proves nothing")
	}
}

// waitRecovered waits until nothing of a predecessor is left.
func waitRecovered(t *testing.T, g *Gateway) {
	t.Helper()
	select {
	case <-g.caughtUp:
	case <-time.After(30 * time.Second):
		t.Fatal("recovery does not end")
	}
}
