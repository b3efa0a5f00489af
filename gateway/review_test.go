package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/segments/faultfs"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/segments/storetest"
)

// TestReadersBesideTrims has readers, lookups and followers run beside appends,
// checkpoints after nearly every cycle, and trims: nobody sees a record elsewhere than it
// was acked, a log end that falls, or an index that moved.
func TestReadersBesideTrims(t *testing.T) {
	g, err := New(Config{Exclusive: true, FlushInterval: time.Millisecond, CycleInterval: -1, FreshBytes: 1 << 10, IndexCacheBytes: 8 << 10}, memory())
	if err != nil {
		t.Fatal(err)
	}
	g.tenure.Load().sequencer.fold = foldLimits{rows: 2, bytes: 1, trim: 2}
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.Run(ctx, func() { close(started) }) }()
	<-started
	r := &testGateway{Gateway: g, log: &logService{g}}
	r.create(t, "a", 1, nil)
	id := metadata.PartitionID{Topic: mustTopic(t, g, "a").ID}
	const appends = 700
	var others sync.WaitGroup
	var over atomic.Bool
	var reads, lookups, trims atomic.Int64
	run := func(f func(random *rand.Rand)) {
		seed := rand.Uint64()
		others.Go(func() {
			random := rand.New(rand.NewPCG(seed, 0))
			for !over.Load() && !t.Failed() {
				f(random)
			}
		})
	}
	var end atomic.Int64 // highest that any reader was told
	told := func(at int64) {
		for was := end.Load(); at > was; was = end.Load() {
			if end.CompareAndSwap(was, at) {
				return
			}
		}
	}
	for range 3 { // readers of everything that is there
		run(func(random *rand.Rand) {
			before := end.Load()
			out, err := r.log.Fetch(ctx, &varvev1.FetchRequest{Topic: "a", Start: earliest(), MaxBytes: 1 + random.Int32N(20_000), Decode: true})
			if connect.CodeOf(classified(err)) == connect.CodeOutOfRange {
				return // trimmed between place and read
			}
			if err != nil {
				t.Errorf("fetch: %v", err)
				return
			}
			if out.GetHighWatermark() < before {
				t.Errorf("the end fell from %d to %d", before, out.GetHighWatermark())
			}
			told(out.GetHighWatermark())
			at := out.GetStartOffset()
			for _, record := range out.GetRecords() {
				if record.GetOffset() != at || string(record.GetValue()) != strconv.FormatInt(at, 10) {
					t.Errorf("offset %d where %d should be, value %s", record.GetOffset(), at, record.GetValue())
				}
				at++
			}
			reads.Add(1)
		})
	}
	run(func(random *rand.Rand) { // the timestamps are the offsets: a lookup's answer is known
		before := end.Load()
		want := random.Int64N(appends)
		out, err := r.log.ListOffsets(ctx, &varvev1.ListOffsetsRequest{Topic: "a", Query: &varvev1.ListOffsetsRequest_AtOrAfter{AtOrAfter: want}})
		if err != nil {
			t.Errorf("lookup: %v", err)
			return
		}
		o := out.GetOffsets()[0]
		if o.GetEndOffset() < before {
			t.Errorf("the end fell from %d to %d", before, o.GetEndOffset())
		}
		want = max(want, o.GetStartOffset())
		if found := want < o.GetEndOffset(); o.GetFound() != found || found && (o.GetOffset() != want || o.GetTimestamp() != want) {
			t.Errorf("lookup of %d: %v", want, o)
		}
		lookups.Add(1)
	})
	run(func(random *rand.Rand) {
		to := max(0, end.Load()-200-random.Int64N(50))
		_, err := g.router.decide(ctx, id, decision{trim: &to})
		if err != nil {
			t.Errorf("trim: %v", err)
		}
		trims.Add(1)
		time.Sleep(time.Millisecond)
	})
	followed := make(chan error, 1)
	go func() { followed <- follow(ctx, r.log, appends) }()
	for i := range int64(appends) {
		if got := r.produce(t, "a", 0, batch.Record{Timestamp: i, Value: strconv.AppendInt(nil, i, 10)}); got.GetBaseOffset() != i {
			t.Fatalf("append %d got offset %d", i, got.GetBaseOffset())
		}
		told(i + 1)
	}
	if err := <-followed; err != nil {
		t.Errorf("follower: %v", err)
	}
	over.Store(true)
	others.Wait()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	t.Logf("%d reads, %d lookups, %d trims, %d checkpoints", reads.Load(), lookups.Load(), trims.Load(), g.meters.checkpoints.Load())
	if reads.Load() == 0 || lookups.Load() == 0 || trims.Load() == 0 || g.meters.checkpoints.Load() < 10 {
		t.Error("this run proves nothing")
	}
}

// follow reads a partition as it grows, up to an offset, and checks each record.
func follow(ctx context.Context, s *logService, until int64) error {
	t, err := s.g.topic(ctx, "a")
	if err != nil {
		return err
	}
	pos, err := s.g.place(ctx, t, 0, &varvev1.Place{At: &varvev1.Place_Latest{Latest: true}}, &varvev1.Place{At: &varvev1.Place_Offset{Offset: until}}, s.g.view)
	if err != nil {
		return err
	}
	at := pos.start
	c := &consumer{g: s.g, tenure: s.g.tenure.Load(), topic: t, positions: []*position{pos}, decode: true, maxBytes: 1 << 20, wake: make(chan struct{}, 1)}
	c.send = func(m *varvev1.ConsumeResponse) error {
		for _, record := range m.GetRecords() {
			if record.GetOffset() != at || string(record.GetValue()) != strconv.FormatInt(at, 10) {
				return fmt.Errorf("offset %d where %d should be", record.GetOffset(), at)
			}
			at++
		}
		return nil
	}
	defer pos.partition.subscribe(wakeUp(c.wake))()
	if err := c.run(ctx, nil); err != nil {
		return err
	}
	if at != until {
		return fmt.Errorf("it ended at %d, not at %d", at, until)
	}
	return nil
}

func earliest() *varvev1.Place { return &varvev1.Place{At: &varvev1.Place_Earliest{Earliest: true}} }

func classified(err error) error {
	if err == nil {
		return nil
	}
	return classify(err).connectError()
}

func mustTopic(t *testing.T, g *Gateway, name string) *metadata.Topic {
	t.Helper()
	topic, err := g.topics.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return topic
}

// TestDeleteBesideAppends deletes topics while producers with many segments under way
// append to them: each append ends, and the next topic's do not wait for any of it.
func TestDeleteBesideAppends(t *testing.T) {
	d := memory()
	g := startGateway(t, Config{Exclusive: true}, d)
	topics := &topicService{g.Gateway}
	refused := 0
	for round := range 5 {
		g.create(t, "a", 3, nil)
		var producers sync.WaitGroup
		var first sync.Once
		begun := make(chan struct{})
		errs := make(chan error, 16)
		for p := range 16 {
			producers.Go(func() {
				for {
					partition := int32(p % 3)
					_, err := g.log.Produce(t.Context(), &varvev1.ProduceRequest{Topic: "a", Partition: &partition, Records: []*varvev1.Record{{Value: []byte("x")}}})
					if err != nil {
						errs <- err
						return
					}
					first.Do(func() { close(begun) })
				}
			})
		}
		<-begun
		if round%2 == 1 {
			if _, err := topics.AlterTopic(t.Context(), &varvev1.AlterTopicRequest{Name: "a", Partitions: 5}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := topics.DeleteTopic(t.Context(), &varvev1.DeleteTopicRequest{Name: "a"}); err != nil {
			t.Fatal(err)
		}
		producers.Wait()
		close(errs)
		for err := range errs {
			if code := classify(err).code; code != connect.CodeNotFound {
				t.Errorf("an append to the deleted topic: %v", err)
			}
			refused++
		}
	}
	if refused != 5*16 {
		t.Errorf("%d producers ended, want %d", refused, 5*16)
	}
	if n := g.tenure.Load().intake.outstanding.Load(); n != 0 {
		t.Errorf("%d bytes are still held", n)
	}
	g.create(t, "a", 1, nil)
	if r := g.produce(t, "a", 0, batch.Record{Timestamp: 1, Value: []byte("x")}); r.GetBaseOffset() != 0 {
		t.Errorf("the new topic begins at %d", r.GetBaseOffset())
	}
}

// TestRecoveryInterrupted crashes again and again in the midst of recovery, with one
// of the topics deleted meanwhile: what was acked as buffered is there once in the end.
func TestRecoveryInterrupted(t *testing.T) {
	disk, store, table := faultfs.New(), storetest.NewFaulty(memstore.New()), memtable.New()
	start := func(config Config) (*testGateway, func()) {
		l := &life{}
		buffers, err := segments.OpenBufferDir(disk, "/buffer", segments.BufferConfig{Reserve: 1})
		if err != nil {
			t.Fatal(err)
		}
		config.Exclusive, config.DrainTime = true, time.Nanosecond
		g, err := New(config, Dependencies{Store: mortalStore{store, l}, Table: mortalTable{table, l}, Buffers: buffers, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		started, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- g.Run(ctx, func() { close(started) }) }()
		select {
		case <-started:
		case err := <-ended:
			t.Fatal(err)
		}
		return &testGateway{Gateway: g, log: &logService{g}}, func() {
			g.tenure.Load().intake.mu.Lock()
			g.tenure.Load().intake.unsettled[1<<63] = struct{}{} // a crash is no drain, which must not find all settled and go on to leave
			g.tenure.Load().intake.mu.Unlock()
			l.over.Store(true)
			disk.Kill()
			cancel()
			<-ended
			buffers.Close()
		}
	}
	g, crash := start(Config{FlushInterval: time.Millisecond, CycleInterval: -1})
	g.create(t, "kept", 2, nil)
	g.create(t, "deleted", 1, nil)
	cut := errors.New("cut off")
	store.Decide(func(c storetest.Call) storetest.Fault {
		if c.Op != storetest.Put {
			return storetest.Fault{}
		}
		if c.N%2 == 0 { // it landed, but the gateway never learns it
			return storetest.Fault{After: fmt.Errorf("%w: %w", segments.ErrUnavailable, cut)}
		}
		return storetest.Fault{Before: fmt.Errorf("%w: %w", segments.ErrUnavailable, cut)}
	})
	const batches = 40
	for i := range batches {
		for _, topic := range []string{"kept", "deleted"} {
			partition := int32(0)
			if topic == "kept" {
				partition = int32(i % 2)
			}
			_, err := g.log.Produce(t.Context(), &varvev1.ProduceRequest{Topic: topic, Partition: &partition, Acks: varvev1.Acks_ACKS_BUFFERED,
				Records: []*varvev1.Record{{Value: []byte(strconv.Itoa(i))}}})
			if err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Millisecond) // several segments
	}
	crash()
	store.Decide(nil)
	for crashes := range 8 {
		g, crash := start(Config{FlushInterval: time.Millisecond, CycleInterval: -1})
		if crashes == 2 {
			if _, err := (&topicService{g.Gateway}).DeleteTopic(t.Context(), &varvev1.DeleteTopicRequest{Name: "deleted"}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Duration(crashes) * 200 * time.Microsecond) // the moment of the crash is part of the test
		crash()
	}
	g, crash = start(Config{})
	defer crash()
	waitRecovered(t, g.Gateway)
	seen := map[string]int{}
	for p := range int32(2) {
		last := -1
		for _, record := range g.readAll(t, "kept", p) {
			n, err := strconv.Atoi(string(record.GetValue()))
			if err != nil || n <= last {
				t.Errorf("partition %d: %s comes after %d", p, record.GetValue(), last)
			}
			last = n
			seen[string(record.GetValue())]++
		}
	}
	for i := range batches {
		if n := seen[strconv.Itoa(i)]; n != 1 {
			t.Errorf("record %d, acked as buffered, is there %d times", i, n)
		}
	}
}
