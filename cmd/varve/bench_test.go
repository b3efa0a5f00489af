package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments/batch"
)

// childVariable makes this test binary the program itself, for benches that run it as a process.
const childVariable = "VARVE_TEST_BENCH_CHILD"

func init() {
	if os.Getenv(childVariable) != "" {
		main()
	}
}

// bench runs `varve bench …` and decodes its one line of JSON.
func bench[T any](s *testShell, args ...string) (report T) {
	s.t.Helper()
	out := s.ok("", append(append([]string{"bench"}, args...), "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		s.t.Fatalf("bench %v printed %q: %v", args, out, err)
	}
	return report
}

func TestReadyRequestsAreValidBatches(t *testing.T) {
	for _, codec := range []client.Codec{client.CodecNone, client.CodecZstd} {
		r, err := newReadyRequest(batchShape{recordSize: 100, records: 7, codec: codec, step: 10}, newRandom())
		if err != nil {
			t.Fatal(err)
		}
		for i, ms := range []int64{5, 1_700_000_000_000, 0} {
			r.address("a topic", int32(i*1000), varvev1.Acks_ACKS_COMMITTED)
			r.stamp(ms, batch.BuildOptions{ProducerID: 42, ProducerEpoch: 3, BaseSequence: int32(i)})
			data, err := batchIn(r.request)
			if err != nil {
				t.Fatal(err)
			}
			info, err := batch.Validate(data, batch.DefaultLimits())
			if err != nil {
				t.Fatalf("%s at %d: %v", codec, ms, err)
			}
			if info.BaseTimestamp != ms || info.MaxTimestamp != ms+60 || info.ProducerID != 42 || info.ProducerEpoch != 3 || info.BaseSequence != int32(i) || info.Count != 7 {
				t.Errorf("%s at %d: %+v", codec, ms, info)
			}
		}
	}
}

func TestQuotaEnds(t *testing.T) {
	take := func(l limit, rate float64) (n int, elapsed time.Duration) {
		q := newQuota(l, rate)
		for {
			if _, ok := q.take(t.Context(), 10, 1000); !ok {
				return n, time.Since(q.began)
			}
			n++
		}
	}
	if n, _ := take(limit{records: 95}, 0); n != 10 {
		t.Errorf("95 records in tens: %d batches, want 10", n)
	}
	if n, _ := take(limit{bytes: 3000}, 0); n != 3 {
		t.Errorf("3,000 bytes in thousands: %d batches, want 3", n)
	}
	if n, elapsed := take(limit{duration: 100 * time.Millisecond}, 1000); n != 11 || elapsed < 100*time.Millisecond {
		t.Errorf("1,000 records a second in tens for 100 ms: %d batches in %s, want 11", n, elapsed)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := newQuota(limit{}, 0).take(ended, 1, 1); ok {
		t.Error("a run went on after it was interrupted")
	}
}

func TestBenchProduce(t *testing.T) {
	s := newShell(t)
	for name, args := range map[string][]string{
		"committed":  {"--acks", "committed"},
		"buffered":   {"--acks", "buffered"},
		"idempotent": {"--idempotent", "-z", "lz4"},
		"client":     {"--through-client"},
		"paced":      {"--rate", "5000", "--warm-up", "10ms"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"produce", "--records", "400", "--batch-records", "20", "--record-size", "50", "--producers", "4"}, args...)
			r := bench[produceReport](s, args...)
			if r.Records < 400 || r.Bytes < 400*50 || r.Ack.Count == 0 || r.Costs.Flushes == 0 || r.Costs.CommitWrites == 0 || r.Costs.ObjectPuts != r.Costs.Flushes {
				t.Errorf("%+v", r)
			}
		})
	}
	if out := s.ok("", "topic", "list", "-o", "json"); out != "" {
		t.Errorf("topics were left behind: %s", out)
	}
}

func TestBenchProduceSharesFlushes(t *testing.T) {
	s := newShell(t)
	r := bench[produceReport](s, "produce", "--producers", "1000", "--batch-records", "1", "--record-size", "10", "--records", "20000")
	if r.Records != 20000 || r.Costs.Flushes > 5000 {
		t.Errorf("%d single records took %d flushes", r.Records, r.Costs.Flushes)
	}
	spread := bench[produceReport](s, "produce", "--partitions", "300", "--spread", "300", "--record-size", "10", "--producers", "1", "--records", "1500", "--warm-up", "1ms")
	c := spread.Costs
	if spread.Records != 1500 || c.CommitWrites > c.Cycles || c.FlushedSpans != 1500 || c.BytesPerSpan > 150 {
		t.Errorf("300 partitions a request: %+v", spread)
	}
}

func TestBenchConsume(t *testing.T) {
	s := newShell(t)
	r := bench[consumeReport](s, "consume", "--bytes", "3MiB", "--decode", "--consumers", "3", "--duration", "300ms", "--followers", "2", "--rate", "100")
	if len(r.Passes) != 2 || r.Passes[0].Records != r.Passes[1].Records || r.Passes[0].Bytes < 3*mib {
		t.Errorf("passes: %+v", r.Passes)
	}
	if r.Tail == nil || r.Tail.Records < 20 || r.Tail.Missing != 0 || r.Tail.Arrival.Count != 2*r.Tail.Records {
		t.Errorf("tail: %+v", r.Tail)
	}
}

func TestBenchLookup(t *testing.T) {
	s := newShell(t)
	r := bench[lookupReport](s, "lookup", "--records", "2000", "--batch-records", "50", "--lookups", "100")
	if len(r.Passes) != 2 || r.Records < 2000 || r.Passes[0].Answer.Count != 100 || r.Passes[1].TableReads > 0.1 {
		t.Errorf("%+v", r)
	}
}

func TestBenchRefusesNonsense(t *testing.T) {
	s := newShell(t)
	for _, args := range [][]string{
		{"produce", "--acks", "maybe"}, {"produce", "-z", "rar"}, {"produce", "--spread", "9"}, {"produce", "--producers", "0"},
		{"produce", "--idempotent", "--acks", "buffered"}, {"produce", "a", "b"}, {"consume", "--phases", "hot"}, {"compare", "--rounds", "0"},
		{"all", "--only", "everything"}, {"all", "--segments", "mem://"}, {"soak", "--duration", "1ms"},
		{"cluster", "--gateways", "0"}, {"cluster", "--only", "speed"}, {"cluster", "--segments", "mem://"}, {"cluster", "--record-size", "3"},
	} {
		if r := s.run("", append([]string{"bench"}, args...)...); r.status != statusUsage {
			t.Errorf("bench %v: status %d, %s", args, r.status, r.stderr)
		}
	}
}

// TestFloorServer checks that the floor does the work that it is taken for.
func TestFloorServer(t *testing.T) {
	in, hold := io.Pipe()
	out, address := io.Pipe()
	ended := make(chan error, 1)
	dir := t.TempDir()
	go func() { ended <- serveFloor(dir, in, address) }()
	var line [64]byte
	n, err := out.Read(line[:])
	if err != nil {
		t.Fatal(err)
	}
	a := &app{stderr: t.Output()}
	f := &floorProcess{wire: a.newWire(string(line[:n-1]), 1)}
	r, err := newReadyRequest(batchShape{recordSize: 100, records: 50}, newRandom())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.wire.call(t.Context(), "/produce", r.request); err != nil {
		t.Error(err)
	}
	if _, err := f.wire.call(t.Context(), "/produce?fsync", r.request); err != nil {
		t.Error(err)
	}
	r.batch[len(r.batch)-1] ^= 1
	if _, err := f.wire.call(t.Context(), "/produce", r.request); err == nil {
		t.Error("a batch that does not have its CRC was taken")
	}
	if err := f.fill(t.Context(), batchShape{recordSize: 100, records: 50}, 3*mib); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/pread?bytes=2500000", "/sendfile?bytes=2500000"} {
		if n, err := f.readRange(t.Context(), path, make([]byte, floorPiece)); n != 2_500_000 || err != nil {
			t.Errorf("%s: %d bytes, %v", path, n, err)
		}
	}
	if err := f.reset(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("after a reset there are %v, %v", left, err)
	}
	f.wire.close()
	hold.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestBenchWithProcesses runs what starts this program as gateway and floor.
func TestBenchWithProcesses(t *testing.T) {
	t.Setenv(childVariable, "1")
	dir := t.TempDir()
	s := &testShell{t: t, url: client.DefaultServer}
	c := bench[compareReport](s, "compare", "--dir", dir, "--rounds", "1", "--duration", "200ms", "--read-bytes", "4MiB", "--batch-size", "64KiB")
	if len(c.Rounds) != 1 || c.Produce <= 0 || c.Consume <= 0 || c.Rounds[0].Consume.Bytes == 0 || c.Rounds[0].Floor.Sendfile.Bytes == 0 {
		t.Errorf("compare: %+v", c)
	}
	n := bench[countsReport](s, "counts", "--dir", dir, "--lone", "5", "--duration", "200ms", "--producers", "50", "--spread", "20", "--requests", "300", "--full", "4MiB", "--lookup-records", "1000", "--idle", "300ms")
	idle := n.Idle.Costs
	if n.Shared.Appends == 0 || len(n.Spread) != 1 || n.Spread[0].Commits > 1 || n.Spread[0].Costs.CommitUnits < 100 || n.Spread[0].CheckpointShare == 0 ||
		n.Spread[0].Full == nil || n.Spread[0].Full.PutsPerGiB == 0 || len(n.Lookups) != 1 || idle.ObjectPuts+idle.ObjectLists+idle.TableWrites != 0 {
		t.Errorf("counts: %+v", n)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestBenchAll runs a little of each part that has no test of its own.
func TestBenchAll(t *testing.T) {
	t.Setenv(childVariable, "1")
	dir, results := t.TempDir(), t.TempDir()
	s := &testShell{t: t, url: client.DefaultServer}
	parts := []string{"small", "follow", "times", "partitions", "memory"}
	r := bench[allReport](s, "all", "--quick", "--dir", dir, "--results", results, "--commit", "abc", "--only", strings.Join(parts, ","))
	if len(r.Parts) != len(parts) {
		t.Fatalf("%+v", r)
	}
	// What does not depend on the machine, nor on how little a quick run does.
	countable := []string{"calls", "GETs", "did not arrive"}
	seen := 0
	for _, p := range r.Parts {
		data, err := os.ReadFile(filepath.Join(results, p.Part+".json"))
		var saved partResult
		if err != nil || json.Unmarshal(data, &saved) != nil || saved.Commit != "abc" || len(saved.Figures) != len(p.Figures) || !saved.Quick {
			t.Errorf("%s.json: %v, %s", p.Part, err, data)
		}
		for _, f := range p.Figures {
			if slices.ContainsFunc(countable, func(s string) bool { return strings.Contains(f.Name, s) }) {
				seen++
				if !f.Good {
					t.Errorf("%s: %s was %g, must be %s", p.Part, f.Name, f.Value, f.must())
				}
			}
		}
	}
	if seen < 6 {
		t.Errorf("%d figures were checked: %+v", seen, r.Parts)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestSoak(t *testing.T) {
	t.Setenv(childVariable, "1")
	s := &testShell{t: t, url: client.DefaultServer}
	// So short a run is all warm-up: that something grows, which is status 1, is not what is looked at.
	run := s.run("", "bench", "soak", "--duration", "3s", "--rate", "500", "--followers", "3", "--dir", t.TempDir(), "-o", "json")
	var r soakReport
	if err := json.Unmarshal([]byte(run.stdout), &r); err != nil {
		t.Fatalf("%s %s: %v", run.stdout, run.stderr, err)
	}
	if r.Load.Records < 1000 || r.Deleted == 0 || r.Trims == 0 || len(r.Times) < 20 {
		t.Errorf("%+v", r)
	}
	for _, thing := range r.Things {
		if len(thing.Samples) != len(r.Times) || thing.Name != "index and producer rows" && slices.Max(thing.Samples) == 0 {
			t.Errorf("%+v", thing)
		}
	}
}

func TestSoakTellsGrowth(t *testing.T) {
	var times, steady, warming, leaking []float64
	for i := range 60 {
		times = append(times, float64(i))
		steady = append(steady, 100+float64(i%7))
		warming = append(warming, min(100, 10*float64(i)))
		leaking = append(leaking, 100+float64(i%7)+float64(i))
	}
	for name, samples := range map[string][]float64{"steady": steady, "warming up": warming, "leaking": leaking} {
		s := soaked{Limit: 5, Share: 0.1, Samples: samples}
		if s.conclude(times); s.Grows != (name == "leaking") {
			t.Errorf("%s: rose by %.1f, may by %.1f", name, s.Rise, s.allowed())
		}
	}
}

// benchPart runs a part of `varve bench cluster` with gateways of its own.
func benchPart(t *testing.T, part string, args ...string) clusterReport {
	t.Helper()
	s := &testShell{t: t, url: client.DefaultServer}
	return bench[clusterReport](s, append([]string{"cluster", "--only", part, "--delay", "1ms", "--lease-time", "600ms", "--flush-interval", "60ms", "--duration", "400ms"}, args...)...)
}

// TestBenchCluster counts what does not depend on the machine.
func TestBenchCluster(t *testing.T) {
	t.Run("commits are one a cycle, no payload goes between gateways", func(t *testing.T) {
		t.Parallel()
		pace := func(size string) paceCount {
			r := benchPart(t, "pace", "--gateways", "3", "--partitions", "24", "--record-size", size)
			if len(r.Pace) != 1 {
				t.Fatalf("%+v", r)
			}
			return r.Pace[0]
		}
		small, large := pace("64B"), pace("4KiB")
		for _, p := range []paceCount{small, large} {
			// A cycle that was under way when the counts were read is in one of them only.
			if p.Cycles == 0 || math.Abs(float64(p.Counts[commitWrites])-float64(p.Cycles)) > 6 || p.Counts[objectPuts] == 0 {
				t.Errorf("%d commit writes in %d cycles, %d PUTs", p.Counts[commitWrites], p.Cycles, p.Counts[objectPuts])
			}
			if p.PayloadSeen != 0 || p.PayloadSent == 0 || p.PeerBytes == 0 || p.Counts[peerCalls] == 0 {
				t.Errorf("between gateways went %d bytes in %d calls, with %d pieces of records; from producers came %d",
					p.PeerBytes, p.Counts[peerCalls], p.PayloadSeen, p.PayloadSent)
			}
		}
		if small.BytesPerSpan > 300 || large.BytesPerSpan > 2*small.BytesPerSpan {
			t.Errorf("%.0f bytes a span with records of 64 bytes, %.0f with records of 4 KiB", small.BytesPerSpan, large.BytesPerSpan)
		}
	})
	t.Run("hops", func(t *testing.T) {
		t.Parallel()
		hops := benchPart(t, "hop", "--samples", "3").Hops
		if len(hops) != 2 || hops[0].Here.Count != 3 || hops[0].There.Count != 3 || hops[1].Here.Count == 0 || hops[1].There.Count == 0 {
			t.Errorf("%+v", hops)
		}
	})
	for _, created := range []string{"300", "2000"} {
		t.Run("a takeover costs by what is active of "+created, func(t *testing.T) {
			t.Parallel()
			for _, c := range benchPart(t, "takeover", "--created", created, "--active", "60").Takeovers {
				n := c.Counts
				if n[leaseWrites] != 60 || n[leaseReads] < 60 || n[indexReads]+n[indexWrites] > 0 || n[commitWrites] > 20 || n[journalReads] > 60 {
					t.Errorf("%d active partitions of %d: %+v", c.Active, c.Created, c)
				}
			}
		})
	}
}

// TestWiretapSeesPayload shows that payload would be seen, however it is cut.
func TestWiretapSeesPayload(t *testing.T) {
	for size := 1; size < 3*markSize; size++ {
		c := newCounter()
		w := &wiretap{counter: c, bytes: peerBytes, payload: peerPayload}
		sent := append([]byte("something else"), marked(4*markSize)...)
		for piece := range slices.Chunk(sent, size) {
			w.note(&w.in, piece)
		}
		if got := c.counts(); got[peerPayload] == 0 || got[peerBytes] != uint64(len(sent)) {
			t.Errorf("in pieces of %d: %d bytes, %d marks", size, got[peerBytes], got[peerPayload])
		}
	}
}

// TestFloorFiles fills files of the floor from many sides: each byte is written once, and no file grows over its size.
func TestFloorFiles(t *testing.T) {
	s := &floorServer{dir: t.TempDir()}
	data := bytes.Repeat([]byte{7}, 3*mib)
	var group errgroup.Group
	for range 9 {
		group.Go(func() error { return s.write(data, true) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	var total int64
	for i, file := range s.files {
		info, err := file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if total += info.Size(); info.Size() > floorFile || file.writes != 0 || file.full != (i < 4) {
			t.Errorf("file %d has %d bytes, %d writes on their way, full: %v", i, info.Size(), file.writes, file.full)
		}
	}
	if len(s.files) != 5 || total != 9*int64(len(data)) {
		t.Errorf("%d files with %d bytes", len(s.files), total)
	}
	if err := s.reset(nil, nil); err != nil {
		t.Fatal(err)
	}
}
