package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
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

// hookedTable asks a hook before each call: an error of it is the call's.
type hookedTable struct {
	metadata.Table
	hook atomic.Pointer[func(metadata.Op, metadata.Key) error]
}

func (h *hookedTable) set(hook func(metadata.Op, metadata.Key) error) { h.hook.Store(&hook) }
func (h *hookedTable) clear()                                         { h.hook.Store(nil) }

func (h *hookedTable) ask(op metadata.Op, key metadata.Key) error {
	if hook := h.hook.Load(); hook != nil {
		return (*hook)(op, key)
	}
	return nil
}

func (h *hookedTable) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	if err := h.ask(metadata.OpGet, key); err != nil {
		return metadata.Row{}, err
	}
	return h.Table.Get(ctx, key, c)
}

func (h *hookedTable) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	if err := h.ask(metadata.OpPut, row.Key); err != nil {
		return err
	}
	return h.Table.Put(ctx, row, cond)
}

func (h *hookedTable) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	if err := h.ask(metadata.OpRange, metadata.Key{Partition: r.Partition}); err != nil {
		return nil, err
	}
	return h.Table.Range(ctx, r)
}

func (h *hookedTable) Delete(ctx context.Context, key metadata.Key, cond metadata.Condition) error {
	if err := h.ask(metadata.OpDelete, key); err != nil {
		return err
	}
	return h.Table.Delete(ctx, key, cond)
}

// runningGateway is one whose end is part of the test.
type runningGateway struct {
	*testGateway
	leave context.CancelFunc
	ended chan error
}

// runGateway starts a gateway. Nothing but the test ends it.
func runGateway(t *testing.T, config Config, d Dependencies) *runningGateway {
	t.Helper()
	return runGatewayWith(t, config, d, func(*Gateway) {})
}

func runGatewayWith(t *testing.T, config Config, d Dependencies, prepare func(*Gateway)) *runningGateway {
	t.Helper()
	if config.FlushInterval == 0 {
		config.FlushInterval = 5 * time.Millisecond
	}
	if !config.Exclusive && config.PeerAddress == "" {
		config.PeerAddress = "127.0.0.1:1"
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
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
	return &runningGateway{&testGateway{Gateway: g, log: &logService{g}}, cancel, ended}
}

// crash ends it in the middle of things. l is the life of its store and table.
func (g *runningGateway) crash(l *life) {
	g.tenure.Load().intake.mu.Lock()
	g.tenure.Load().intake.unsettled[1<<63] = struct{}{} // a crash is no drain, which must not find all settled and go on to leave
	g.tenure.Load().intake.mu.Unlock()
	l.over.Store(true)
	g.leave()
	<-g.ended
}

func appendOne(ctx context.Context, g *testGateway, partition int32, acks varvev1.Acks) error {
	_, err := g.log.Produce(ctx, &varvev1.ProduceRequest{Topic: "a", Partition: &partition, Acks: acks, Records: []*varvev1.Record{{Value: []byte("x")}}})
	return err
}

func openBuffers(t *testing.T, disk *faultfs.FS) *segments.BufferDir {
	t.Helper()
	buffers, err := segments.OpenBufferDir(disk, "/buffer", segments.BufferConfig{Reserve: 1})
	if err != nil {
		t.Fatal(err)
	}
	return buffers
}

// TestStopWhileTableIsOut stops a gateway that cannot reach its table: it ends when its
// time is over, and says why.
func TestStopWhileTableIsOut(t *testing.T) {
	for _, exclusive := range []bool{true, false} {
		t.Run(fmt.Sprintf("exclusive=%v", exclusive), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := &hookedTable{Table: memtable.New()}
				g := runGateway(t, Config{Exclusive: exclusive, DrainTime: 3 * time.Second}, Dependencies{Store: memstore.New(), Table: table})
				table.set(func(metadata.Op, metadata.Key) error { return fmt.Errorf("%w: out", metadata.ErrUnavailable) })
				began := time.Now()
				g.leave()
				select {
				case err := <-g.ended:
					if took := time.Since(began); err == nil || took > 4*time.Second {
						t.Errorf("ended with %v after %s, with 3 s to drain", err, took)
					}
				case <-time.After(time.Minute):
					t.Error("it does not end")
					table.clear()
					<-g.ended
				}
			})
		})
	}
}

// TestBrokenPartition has a partition whose lease row cannot be decoded: its appends are
// refused, those to others go on, and what was acked as buffered for it is kept until a
// start that can append it.
func TestBrokenPartition(t *testing.T) {
	disk, table, store := faultfs.New(), &hookedTable{Table: memtable.New()}, memstore.New()
	start := func() (*runningGateway, *segments.BufferDir) {
		buffers := openBuffers(t, disk)
		return runGateway(t, Config{Exclusive: true}, Dependencies{Store: store, Table: table, Buffers: buffers}), buffers
	}
	g, buffers := start()
	id := metadata.PartitionID{Topic: g.create(t, "a", 2, nil).ID}
	table.set(func(op metadata.Op, key metadata.Key) error {
		if op == metadata.OpGet && key.Partition == fmt.Sprintf("partition/%s/0", id.Topic) && key.Sort == "lease" {
			return fmt.Errorf("%w: checksum", metadata.ErrCorrupt)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := appendOne(ctx, g.testGateway, 0, varvev1.Acks_ACKS_BUFFERED); err != nil {
		t.Fatal(err)
	}
	if err := appendOne(ctx, g.testGateway, 0, varvev1.Acks_ACKS_COMMITTED); connect.CodeOf(classified(err)) != connect.CodeDataLoss {
		t.Errorf("an append to it: %v", err)
	}
	for range 2 * uploadsAtOnce { // more than could be held up
		if err := appendOne(ctx, g.testGateway, 1, varvev1.Acks_ACKS_COMMITTED); err != nil {
			t.Fatalf("an append to the other partition: %v", err)
		}
		if err := appendOne(ctx, g.testGateway, 0, varvev1.Acks_ACKS_COMMITTED); connect.CodeOf(classified(err)) != connect.CodeDataLoss {
			t.Fatalf("an append to it: %v", err)
		}
	}
	for round := range 3 {
		g.leave()
		if err := <-g.ended; round == 0 && err == nil {
			t.Error("a gateway ended well though it left a file in its buffer")
		}
		buffers.Close()
		if round == 2 {
			break
		}
		if round == 1 {
			table.clear()
		}
		g, buffers = start()
		waitRecovered(t, g.Gateway)
		if round == 1 {
			if got := len(g.readAll(t, "a", 0)); got != 1 {
				t.Errorf("acked as buffered, but %d records are there", got)
			}
		}
		if got := len(g.readAll(t, "a", 1)); got != 2*uploadsAtOnce {
			t.Errorf("the other partition has %d records", got)
		}
	}
}

// TestLongTakeoverKeepsTheEnd takes a partition with more index entries that no page
// holds than a lease row has room for: while pages are being written, readers are told of all of it.
func TestLongTakeoverKeepsTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const appends = 300
		inner, store, l := memtable.New(), memstore.New(), &life{}
		first := &hookedTable{Table: mortalTable{inner, l}}
		first.set(func(op metadata.Op, key metadata.Key) error {
			if op == metadata.OpPut && strings.HasPrefix(key.Sort, "page/") {
				return fmt.Errorf("%w: no pages", metadata.ErrDenied)
			}
			return nil
		})
		g := runGateway(t, Config{Exclusive: true, FlushInterval: time.Millisecond, CycleInterval: -1, DrainTime: time.Nanosecond},
			Dependencies{Store: mortalStore{store, l}, Table: first})
		g.create(t, "a", 1, nil)
		for range appends {
			g.produce(t, "a", 0, batch.Record{Timestamp: 1})
		}
		g.crash(l)
		second := &hookedTable{Table: inner}
		reached, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		second.set(func(op metadata.Op, key metadata.Key) error {
			if op == metadata.OpPut && strings.HasPrefix(key.Sort, "page/") {
				once.Do(func() { close(reached) })
				<-release
			}
			return nil
		})
		g = runGateway(t, Config{Exclusive: true}, Dependencies{Store: store, Table: second})
		<-reached
		out, err := g.log.ListOffsets(t.Context(), &varvev1.ListOffsetsRequest{Topic: "a"})
		if err != nil || out.GetOffsets()[0].GetEndOffset() != appends {
			t.Errorf("during the takeover: %v %v, want the end at %d", out, err, appends)
		}
		close(release)
		if r := g.produce(t, "a", 0, batch.Record{Timestamp: 1}); r.GetBaseOffset() != appends {
			t.Errorf("the next offset is %d, want %d", r.GetBaseOffset(), appends)
		}
		g.leave()
		if err := <-g.ended; err != nil {
			t.Error(err)
		}
	})
}

// TestDeniedCommit denies commits for a while: the gateway goes on when they are let in again.
func TestDeniedCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &hookedTable{Table: memtable.New()}
		g := runGateway(t, Config{Exclusive: true}, Dependencies{Store: memstore.New(), Table: table})
		g.create(t, "a", 1, nil)
		g.produce(t, "a", 0, batch.Record{Timestamp: 1})
		deny := fmt.Errorf("%w: expired", metadata.ErrDenied)
		for name, answers := range map[string][]error{
			"denied":           {deny, deny},
			"no table":         {metadata.ErrNoTable},
			"denied in doubt":  {metadata.ErrUnknown, deny, deny},
			"for a long while": slices.Repeat([]error{deny}, 20),
		} {
			var calls atomic.Int64
			table.set(func(_ metadata.Op, key metadata.Key) error {
				if n := calls.Add(1); strings.HasPrefix(key.Partition, "journal/") && int(n) <= len(answers) {
					return answers[n-1]
				}
				return nil
			})
			if err := appendOne(t.Context(), g.testGateway, 0, varvev1.Acks_ACKS_COMMITTED); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := len(g.readAll(t, "a", 0)); got != 5 {
			t.Errorf("%d records are there, want 5", got)
		}
		g.leave()
		if err := <-g.ended; err != nil {
			t.Error(err)
		}
	})
}

// counting counts the log lines that begin with a text.
type counting struct {
	slog.Handler
	text string
	n    atomic.Int64
}

func (c *counting) Enabled(context.Context, slog.Level) bool { return true }

func (c *counting) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, c.text) {
		c.n.Add(1)
	}
	return nil
}

// TestCheckpoints has checkpoints fall due by the number of a partition's new index entries,
// while the journal is small, and fail for a while.
func TestCheckpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, failures := &hookedTable{Table: memtable.New()}, &counting{text: "checkpoint not written"}
		g := runGateway(t, Config{Exclusive: true, FlushInterval: time.Millisecond, CycleInterval: -1},
			Dependencies{Store: memstore.New(), Table: table, Log: slog.New(failures)})
		g.create(t, "a", 1, nil)
		produce := func(appends int) {
			for range appends {
				g.produce(t, "a", 0, batch.Record{Timestamp: 1})
			}
		}
		produce(300)
		synctest.Wait()
		if n := g.meters.checkpoints.Load(); n != 1 {
			t.Errorf("%d checkpoints after 300 appends", n)
		}
		table.set(func(_ metadata.Op, key metadata.Key) error {
			if key.Sort == "lease" {
				return fmt.Errorf("%w: expired", metadata.ErrDenied)
			}
			return nil
		})
		began := time.Now()
		produce(3000)
		synctest.Wait()
		if n, most := failures.n.Load(), int64(time.Since(began)/checkpointPause)+1; n == 0 || n > most {
			t.Errorf("%d checkpoints failed within %s, want 1 to %d", n, time.Since(began), most)
		}
		table.clear()
		time.Sleep(2 * checkpointPause) // virtual
		produce(1)
		synctest.Wait()
		if n := g.meters.checkpoints.Load(); n != 2 {
			t.Errorf("%d checkpoints, want another one once they succeed", n)
		}
		if got := len(g.readAll(t, "a", 0)); got != 3301 {
			t.Errorf("read %d records", got)
		}
		g.leave()
		if err := <-g.ended; err != nil {
			t.Error(err)
		}
	})
}

// TestCheckpointsOfAFullJournal fail, too: they are tried at the same pace.
func TestCheckpointsOfAFullJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, failures := &hookedTable{Table: memtable.New()}, &counting{text: "checkpoint not written"}
		g := startGatewayWith(t, Config{Exclusive: true, FlushInterval: time.Millisecond, CycleInterval: -1},
			Dependencies{Store: memstore.New(), Table: table, Log: slog.New(failures)}, func(g *Gateway) {
				g.tenure.Load().sequencer.fold = foldLimits{rows: 1, bytes: 0, trim: 1}
			})
		g.create(t, "a", 1, nil)
		g.produce(t, "a", 0, batch.Record{Timestamp: 1})
		table.set(func(_ metadata.Op, key metadata.Key) error {
			if key.Sort == "lease" {
				return fmt.Errorf("%w: expired", metadata.ErrDenied)
			}
			return nil
		})
		began := time.Now()
		for range 100 {
			g.produce(t, "a", 0, batch.Record{Timestamp: 1})
		}
		synctest.Wait()
		if n, most := failures.n.Load(), int64(time.Since(began)/checkpointPause)+1; n == 0 || n > most {
			t.Errorf("%d checkpoints failed within %s, want 1 to %d", n, time.Since(began), most)
		}
		table.clear()
	})
}

// goneInside is a context that ends once the append was let in.
type goneInside struct {
	context.Context
	asked atomic.Bool
}

func (c *goneInside) Err() error {
	if c.asked.CompareAndSwap(false, true) {
		return nil
	}
	return c.Context.Err()
}

// TestCancelledBufferedAppends has callers give up before their batch is on disk: that
// seals nothing.
func TestCancelledBufferedAppends(t *testing.T) {
	buffers := openBuffers(t, faultfs.New())
	defer buffers.Close()
	store := storetest.NewFaulty(memstore.New())
	g := runGateway(t, Config{Exclusive: true, FlushInterval: 10 * time.Second, CycleInterval: -1}, Dependencies{Store: store, Table: memtable.New(), Buffers: buffers})
	g.create(t, "a", 1, nil)
	g.produce(t, "a", 0, batch.Record{Timestamp: 1}) // at once, since the gateway was quiet
	before := store.Calls(storetest.Put)
	gone, leave := context.WithCancel(t.Context())
	leave()
	doubted := 0
	for range 50 {
		if err := appendOne(&goneInside{Context: gone}, g.testGateway, 0, varvev1.Acks_ACKS_BUFFERED); classify(err).info.GetUnknownOutcome() {
			doubted++
		}
	}
	if doubted == 0 {
		t.Error("no call was cut short: this run proves nothing")
	}
	g.leave()
	if err := <-g.ended; err != nil {
		t.Error(err)
	}
	if n := store.Calls(storetest.Put) - before; n != 1 {
		t.Errorf("%d PUTs, want the last one alone", n)
	}
}

// TestStopEndsBacklog stops the gateway while a reader has much to read: it is told to
// go elsewhere.
func TestStopEndsBacklog(t *testing.T) {
	g := startGateway(t, Config{Exclusive: true}, memory())
	topic := g.create(t, "a", 1, nil)
	for range 10 {
		g.produce(t, "a", 0, batch.Record{Timestamp: 1, Value: make([]byte, 60<<10)})
	}
	pos, err := g.place(t.Context(), topic, 0, earliest(), nil, g.view)
	if err != nil {
		t.Fatal(err)
	}
	messages := 0
	c := &consumer{g: g.Gateway, tenure: g.tenure.Load(), topic: topic, positions: []*position{pos}, maxBytes: 64 << 10, wake: make(chan struct{}, 1)}
	c.send = func(*varvev1.ConsumeResponse) error {
		messages++
		return g.stop()
	}
	if err := c.run(t.Context(), nil); !errors.Is(err, errDraining) || messages != 1 {
		t.Errorf("%d messages, then %v", messages, err)
	}
}

// TestGenerationsAreFew checks that the bucket keeps the newest generation alone.
func TestGenerationsAreFew(t *testing.T) {
	store, table := memstore.New(), memtable.New()
	for range 5 {
		g := startGateway(t, Config{Exclusive: true}, Dependencies{Store: store, Table: table})
		if err := g.stop(); err != nil {
			t.Fatal(err)
		}
		objects, err := store.List(t.Context(), g.generation.prefix(), "", 10)
		if err != nil || len(objects) != 1 {
			t.Fatalf("%v %v", objects, err)
		}
	}
}
