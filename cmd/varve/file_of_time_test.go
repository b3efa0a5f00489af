package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/bolttable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/segments/filestore"
)

var (
	timeSeeds = flag.Int("time-seeds", 2, "how many seeds TestFileOfTime runs")
	timeFrom  = flag.Uint64("time-from", 1, "its first seed")
)

// A log is a file of time: whatever was merged, trimmed, compacted by key, expired and collected in between, cat and
// offsets say of any stretch of time what brute force over the records says that are left; and those are the ones that
// must be.
func TestFileOfTime(t *testing.T) {
	var done timeDeeds
	for seed := *timeFrom; seed < *timeFrom+uint64(*timeSeeds); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newTimeWorld(t, seed)
			w.create("plain", 3, 0, nil)
			w.create("dated", 2, 0, map[string]string{"timestamp.type": "append"})
			w.create("old", 2, 0, map[string]string{"retention.ms": "2700000"})
			w.create("large", 2, 0, map[string]string{"retention.bytes": "150000"})
			w.create("keys", 3, 300, map[string]string{"cleanup.policy": "compact", "delete.retention.ms": "1", "min.cleanable.dirty.ratio": "0"})
			w.create("kept-keys", 2, 60, map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"})
			w.create("old-keys", 2, 60, map[string]string{"cleanup.policy": "compact,delete", "retention.ms": "3600000", "min.cleanable.dirty.ratio": "0"})
			for range 30 {
				w.step()
			}
			for _, topic := range w.topics {
				w.look(topic)
				for range 12 {
					w.ask(topic)
				}
				w.sweep(topic)
			}
			w.shell.ok("", "verify", "--deep")
			t.Logf("%s", w.did)
			done.add(w.did)
		})
	}
	if done.segments == 0 || done.dropped == 0 || done.collected == 0 || done.expired == 0 || done.trims == 0 {
		t.Errorf("not all was done: %s", done)
	}
}

// A hundred thousand records, merged into few segments.
func TestFileOfTimeLarge(t *testing.T) {
	w := newTimeWorld(t, 7)
	topic := w.create("large", 4, 0, nil)
	for topic.size() < 100_000 {
		w.append(topic, 5000)
	}
	w.compact("")
	w.look(topic)
	for range 30 {
		w.ask(topic)
	}
}

// timeWorld is a gateway on files and an embedded table, what looks after its log when it is told to, and what was
// appended through it.
type timeWorld struct {
	t      *testing.T
	random *rand.Rand
	data   string
	store  *filestore.Store
	table  *bolttable.Table
	clock  atomic.Int64 // ms; the gateway's, and retention's
	shell  *testShell
	topics []*timeTopic

	// Of the gateway that runs:
	gateway  *gateway.Gateway
	client   *client.Client
	merging  *compactor.Compactor
	collects *compactor.Collector
	stop     func()

	did timeDeeds
}

// timeDeeds counts what was done, so that a run in which hardly anything was does not pass.
type timeDeeds struct {
	appends, trims, passes, retentions, collections, restarts, cats, lookups int
	segments, dropped, expired, collected                                    int64
}

func (d *timeDeeds) add(other timeDeeds) {
	d.trims += other.trims
	d.segments += other.segments
	d.dropped += other.dropped
	d.expired += other.expired
	d.collected += other.collected
}

func (d timeDeeds) String() string {
	return fmt.Sprintf("%d appends, %d trims, %d passes (%d new segments, %d records taken out by key), retention %d times (%d offsets), %d collections (%d objects), %d restarts, %d times cat, %d times offsets",
		d.appends, d.trims, d.passes, d.segments, d.dropped, d.retentions, d.expired, d.collections, d.collected, d.restarts, d.cats, d.lookups)
}

// timeTopic is a topic as it must be.
type timeTopic struct {
	name      string
	config    map[string]string
	keys      int // about how many; 0: a record need not have one
	producer  func() *client.Producer
	partition []*timePartition
	walk      int64 // ms; where the timestamps are
}

// timePartition has every record that was appended, and what of it must be left.
type timePartition struct {
	all   []client.Record
	start int64
	left  []client.Record
}

func (p *timePartition) end() int64 { return int64(len(p.all)) }

func (t *timeTopic) size() (n int) {
	for _, p := range t.partition {
		n += len(p.all)
	}
	return n
}

func (t *timeTopic) compacted() bool { return strings.HasPrefix(t.config["cleanup.policy"], "compact") }

func newTimeWorld(t *testing.T, seed uint64) *timeWorld {
	w := &timeWorld{t: t, random: rand.New(rand.NewPCG(seed, 1)), data: t.TempDir(), shell: &testShell{t: t, env: make(map[string]string)}}
	w.clock.Store(testNow.UnixMilli())
	var err error
	w.store, err = filestore.Open(filepath.Join(w.data, "segments"))
	w.must(err)
	w.table, err = bolttable.Open(filepath.Join(w.data, "metadata.db"), bolttable.Options{NoSync: true})
	w.must(err)
	w.start()
	t.Cleanup(func() {
		w.stop()
		if err := w.table.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *timeWorld) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// start starts a gateway, with small limits of the index, and a compactor and a collector that do nothing by themselves.
func (w *timeWorld) start() {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	buffers, err := segments.OpenBufferDir(segments.OS(), filepath.Join(w.data, "buffer"), segments.BufferConfig{})
	w.must(err)
	config := gateway.Config{FlushInterval: time.Millisecond, CycleInterval: -1, Exclusive: true, FoldRows: 8, FoldBytes: 1 << 10}
	w.gateway, err = gateway.New(config, gateway.Dependencies{Store: w.store, Table: w.table, Buffers: buffers, Log: log, FreeMemory: func() {},
		Now: func() time.Time { return time.UnixMilli(w.clock.Load()) }})
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- w.gateway.Run(ctx, func() { close(started) }) }()
	select {
	case <-started:
	case err := <-ended:
		w.t.Fatal(err)
	}
	server := httptest.NewServer(w.gateway.Handler())
	w.shell.env["VARVE_SERVER"] = server.URL
	w.client, err = client.New(client.Config{Servers: []string{server.URL}})
	w.must(err)
	w.merging, err = compactor.New(compactor.Config{TargetBytes: 256 << 10, KeyMapBytes: 64 << 10, KeyTailBytes: -1, BytesPerSecond: -1, LooksPerSecond: -1},
		compactor.Dependencies{Store: w.store, Table: w.table, Cluster: mergingGateway{w.gateway}, Log: log})
	w.must(err)
	w.collects, err = compactor.NewCollector(compactor.CollectConfig{Store: w.store, Table: w.table, Gateways: w.gateway, Grace: -1, MaxShare: 1, Log: log})
	w.must(err)
	var merging sync.WaitGroup
	merging.Go(func() { _ = w.merging.Run(ctx) }) // it ends when it is told to
	w.stop = func() {
		w.must(w.client.Close())
		cancel()
		merging.Wait()
		if err := <-ended; err != nil {
			w.t.Errorf("the gateway did not end well: %v", err)
		}
		server.Close()
		w.must(buffers.Close())
		for _, topic := range w.topics {
			topic.producer = w.producer(topic.name)
		}
	}
}

// mergingGateway is a gateway as its compactor sees it.
type mergingGateway struct{ *gateway.Gateway }

func (g mergingGateway) View(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	return g.MergeView(ctx, id)
}

func (g mergingGateway) Topic(ctx context.Context, name string) (*metadata.Topic, error) {
	return g.Upkeep().Topics().Refresh(ctx, name)
}

func (g mergingGateway) Clock() time.Time { return g.Upkeep().Clock() }

func (w *timeWorld) create(name string, partitions, keys int, config map[string]string) *timeTopic {
	w.t.Helper()
	args := []string{"topic", "create", name, "--partitions", fmt.Sprint(partitions)}
	for k, v := range config {
		args = append(args, "--config", k+"="+v)
	}
	w.shell.ok("", args...)
	topic := &timeTopic{name: name, config: config, keys: keys, producer: w.producer(name), walk: w.clock.Load() - 2*time.Hour.Milliseconds()}
	for range partitions {
		topic.partition = append(topic.partition, &timePartition{})
	}
	w.topics = append(w.topics, topic)
	return topic
}

// producer makes a producer of the gateway that runs when it is first asked for.
func (w *timeWorld) producer(topic string) func() *client.Producer {
	return sync.OnceValue(func() *client.Producer {
		codecs := []batch.Codec{batch.None, batch.Gzip, batch.Snappy, batch.LZ4, batch.Zstd}
		p, err := w.client.NewProducer(client.ProducerConfig{Topic: topic, Linger: client.NoLinger, Partitioning: client.PartitionAsGiven,
			Codec: codecs[w.random.IntN(len(codecs))], BatchBytes: 4 << (10 + w.random.IntN(5))})
		w.must(err)
		return p
	})
}

// tick lets time pass on all clocks.
func (w *timeWorld) tick() { w.clock.Add(w.random.Int64N(15 * time.Minute.Milliseconds())) }

// step does something, looks at what it changed, and asks about a topic.
func (w *timeWorld) step() {
	w.t.Helper()
	w.tick()
	topic := w.topics[w.random.IntN(len(w.topics))]
	touched := []*timeTopic{topic}
	switch n := w.random.IntN(100); {
	case n < 45:
		for range 1 + w.random.IntN(4) {
			for _, each := range w.topics {
				w.append(each, 40)
			}
		}
		touched = nil
	case n < 60:
		w.compact([]string{"", topic.name}[w.random.IntN(2)])
		touched = w.topics
	case n < 75:
		w.trim(topic)
	case n < 85:
		w.retain()
		touched = w.topics
	case n < 95:
		w.collect()
		touched = w.topics
	default:
		w.stop()
		w.start()
		w.did.restarts++
	}
	for _, each := range touched {
		w.look(each)
	}
	for range 3 {
		w.ask(w.topics[w.random.IntN(len(w.topics))])
	}
}

// append appends up to that many records to each partition, in one request for each.
func (w *timeWorld) append(topic *timeTopic, most int) {
	w.t.Helper()
	var records []client.Record
	for n, p := range topic.partition {
		for range w.random.IntN(most + 1) {
			r := w.record(topic, p.end())
			r.Topic, r.Partition = topic.name, int32(n)
			records = append(records, r)
			if topic.config["timestamp.type"] == "append" {
				r.Timestamp = time.UnixMilli(w.clock.Load())
			}
			p.all, p.left = append(p.all, r), append(p.left, r)
		}
	}
	acks, err := topic.producer().ProduceSync(w.t.Context(), records...)
	w.must(err)
	for i, r := range records {
		if acks[i].BaseOffset != r.Offset {
			w.t.Fatalf("%s/%d: a record is at offset %d, want %d", topic.name, r.Partition, acks[i].BaseOffset, r.Offset)
		}
	}
	w.did.appends++
}

// record draws a record. Timestamps go on, stand still, jump ahead and go back.
func (w *timeWorld) record(topic *timeTopic, offset int64) client.Record {
	r, ahead := w.random, w.clock.Load()+50*time.Minute.Milliseconds() // what is an hour ahead is refused
	switch n := r.IntN(100); {
	case n < 50:
		topic.walk += r.Int64N(4000)
	case n < 80:
	case n < 97:
		topic.walk -= r.Int64N(10_000)
	case n < 98:
		topic.walk -= r.Int64N(time.Hour.Milliseconds())
	case r.IntN(4) == 0:
		topic.walk = w.clock.Load() + r.Int64N(40)*time.Minute.Milliseconds()
	default:
		topic.walk = w.clock.Load() - r.Int64N(10_000)
	}
	topic.walk = min(topic.walk, ahead)
	record := client.Record{Offset: offset, Timestamp: time.UnixMilli(topic.walk)}
	switch {
	case topic.keys > 0 && r.IntN(10) == 0: // it stays: nothing takes its place
		record.Key = fmt.Appendf(nil, "only-%d", r.Uint64())
	case topic.keys > 0:
		record.Key = fmt.Appendf(nil, "k%d", r.IntN(topic.keys))
	case r.IntN(2) == 0:
		record.Key = []byte("k")
	}
	if r.IntN(6) > 0 {
		record.Value = fmt.Appendf(nil, "%x", r.Uint64())
		if size := r.IntN(1 + r.IntN(1500)); topic.size() < 50_000 {
			record.Value = append(record.Value, bytes.Repeat([]byte{'a' + byte(r.IntN(26))}, size)...)
		}
	}
	return record
}

// compact has a pass made over a topic, or all of them.
func (w *timeWorld) compact(topic string) {
	w.t.Helper()
	report, err := w.merging.Compact(w.t.Context(), topic, false)
	w.must(err)
	if report.Failed > 0 || len(report.SetAside) > 0 {
		w.t.Fatalf("a pass came to %+v", report)
	}
	w.did.passes++
	w.did.segments += int64(report.Segments)
	w.did.dropped += report.Dropped
	for _, each := range w.topics {
		if each.compacted() && (topic == "" || topic == each.name) {
			w.superseded(each)
		}
	}
}

// superseded looks for records that a pass had to take out: those with a newer one of their key that is not the last record.
func (w *timeWorld) superseded(topic *timeTopic) {
	w.t.Helper()
	for n, p := range topic.partition {
		newest := make(map[string]int64)
		for _, r := range p.all[:max(p.end()-1, 0)] {
			newest[string(r.Key)] = r.Offset
		}
		for _, r := range w.read(topic, n) {
			if newer, ok := newest[string(r.Key)]; ok && newer > r.Offset {
				w.t.Fatalf("%s/%d: after a pass offset %d is there, although its key %s was written at %d", topic.name, n, r.Offset, r.Key, newer)
			}
		}
	}
}

// trim moves a log start up, to an offset or to a time.
func (w *timeWorld) trim(topic *timeTopic) {
	w.t.Helper()
	n := w.random.IntN(len(topic.partition))
	p := topic.partition[n]
	at := placeOf(p.start + w.random.Int64N(p.end()-p.start+1)/3)
	switch w.random.IntN(3) {
	case 0:
		at = w.timePlace(topic)
	case 1:
		at = beforeEnd((p.end() - p.start) / 2)
	}
	w.shell.ok("", "topic", "trim", topic.name, "-p", fmt.Sprint(n), "--to", at.text, "--yes")
	p.trimmed(max(p.start, at.in(p)))
	w.did.trims++
}

func (p *timePartition) trimmed(to int64) {
	p.start = to
	p.left = slices.DeleteFunc(p.left, func(r client.Record) bool { return r.Offset < to })
}

// retain has retention look at every partition, until nothing more goes.
func (w *timeWorld) retain() {
	w.t.Helper()
	log := &settledRetention{Upkeep: w.gateway.Upkeep(), waits: make(map[metadata.PartitionID]bool), settled: make(chan struct{})}
	for _, topic := range w.topics {
		found, err := w.gateway.Upkeep().Topics().Get(w.t.Context(), topic.name)
		w.must(err)
		for n := range found.Partitions {
			if !found.Config.Retention().Forever() {
				log.waits[metadata.PartitionID{Topic: found.ID, Number: n}] = true
			}
		}
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	retention := compactor.NewRetention(compactor.RetentionConfig{Pace: time.Millisecond, SizePace: time.Millisecond, Spread: time.Microsecond}, log, log.Topics())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = retention.Run(ctx) // it ends when it is told to
	}()
	<-log.settled
	cancel()
	<-done
	w.did.retentions++
	for _, topic := range w.topics {
		if topic.config["retention.ms"] != "" || topic.config["retention.bytes"] != "" {
			w.expired(topic)
		}
	}
}

// settledRetention says when each partition was looked at and nothing of it was to go.
type settledRetention struct {
	*gateway.Upkeep
	mu      sync.Mutex
	waits   map[metadata.PartitionID]bool
	settled chan struct{}
}

func (s *settledRetention) Expired(ctx context.Context, id metadata.PartitionID, r metadata.Retention, now int64) (*metadata.View, metadata.Expired, error) {
	v, e, err := s.Upkeep.Expired(ctx, id, r, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && e.To <= e.From && s.waits[id] {
		if delete(s.waits, id); len(s.waits) == 0 {
			close(s.settled)
		}
	}
	return v, e, err
}

// expired holds where a topic's partitions start after retention against what it may, and must, remove.
func (w *timeWorld) expired(topic *timeTopic) {
	w.t.Helper()
	var millis, size int64 = -1, -1
	fmt.Sscan(topic.config["retention.ms"], &millis)
	fmt.Sscan(topic.config["retention.bytes"], &size)
	for n, p := range topic.partition {
		start := w.offsets(topic, n, "earliest").StartOffset
		if start < p.start {
			w.t.Fatalf("%s/%d: the log start fell from %d to %d", topic.name, n, p.start, start)
		}
		old := func(r client.Record) bool { return millis >= 0 && r.Timestamp.UnixMilli() < w.clock.Load()-millis }
		was := p.left
		p.trimmed(start)
		var left int64
		for _, r := range p.left {
			left += int64(len(r.Key) + len(r.Value) + 80) // what a batch adds to a record is less
		}
		for _, r := range was {
			if r.Offset < start && !old(r) && (size < 0 || left < size) {
				w.t.Fatalf("%s/%d: offset %d of %v is gone, the log starts at %d with %d bytes or fewer", topic.name, n, r.Offset, r.Timestamp, start, left)
			}
		}
		if len(p.left) > 0 && !slices.ContainsFunc(p.left, func(r client.Record) bool { return !old(r) }) {
			w.t.Fatalf("%s/%d: the log starts at %d, although all of it is too old", topic.name, n, start)
		}
		w.did.expired += int64(len(was) - len(p.left))
	}
}

// collect deletes what nothing names.
func (w *timeWorld) collect() {
	w.t.Helper()
	report, err := w.collects.Collect(w.t.Context(), compactor.CollectOptions{Wait: true, Force: true})
	w.must(err)
	w.did.collections++
	w.did.collected += report.Deleted
}

// look reads a topic whole. What is left is what was appended, at its offset; of what was left before, nothing is missing but
// what compaction by key may take out, and nothing is back that was gone.
func (w *timeWorld) look(topic *timeTopic) {
	w.t.Helper()
	for n, p := range topic.partition {
		earliest := w.offsets(topic, n, "earliest")
		if earliest.StartOffset != p.start || earliest.EndOffset != p.end() {
			w.t.Fatalf("%s/%d has offsets %d to %d, want %d to %d", topic.name, n, earliest.StartOffset, earliest.EndOffset, p.start, p.end())
		}
		read := w.read(topic, n)
		if !topic.compacted() && len(read) != len(p.left) {
			w.t.Fatalf("%s/%d has %d records, want %d", topic.name, n, len(read), len(p.left))
		}
		there := make(map[int64]bool)
		for _, r := range read {
			there[r.Offset] = true
		}
		newest := make(map[string]int64)
		for _, r := range p.all {
			newest[string(r.Key)] = r.Offset
		}
		p.left = slices.DeleteFunc(p.left, func(r client.Record) bool {
			tombstone := r.Value == nil && topic.config["delete.retention.ms"] != ""
			if !there[r.Offset] && newest[string(r.Key)] == r.Offset && !tombstone || !there[r.Offset] && r.Offset == p.end()-1 {
				w.t.Fatalf("%s/%d: offset %d is gone, the last one of key %s", topic.name, n, r.Offset, r.Key)
			}
			return !there[r.Offset]
		})
		if !slices.EqualFunc(read, p.left, sameRecord) {
			w.t.Fatalf("%s/%d: other records are read than are left, or in another order", topic.name, n)
		}
		if len(read) > 0 && earliest.Offset != read[0].Offset {
			w.t.Fatalf("%s/%d: the earliest offset is said to be %d, the first record has %d", topic.name, n, earliest.Offset, read[0].Offset)
		}
	}
}

func sameRecord(a, b client.Record) bool {
	return bytes.Equal(appendRecordJSON(nil, &a), appendRecordJSON(nil, &b))
}

// read reads a partition with cat.
func (w *timeWorld) read(topic *timeTopic, n int) (list []client.Record) {
	w.t.Helper()
	for line := range strings.Lines(w.shell.ok("", "cat", topic.name, "-p", fmt.Sprint(n), "-o", "json", "--from", "earliest")) {
		var r struct {
			Offset, Timestamp int64
			Key, Value        *string
		}
		w.must(json.Unmarshal([]byte(line), &r))
		record := client.Record{Topic: topic.name, Partition: int32(n), Offset: r.Offset, Timestamp: time.UnixMilli(r.Timestamp)}
		if r.Key != nil {
			record.Key = []byte(*r.Key)
		}
		if r.Value != nil {
			record.Value = []byte(*r.Value)
		}
		list = append(list, record)
	}
	return list
}

// offsets asks one partition.
func (w *timeWorld) offsets(topic *timeTopic, n int, at string) (o partitionOffset) {
	w.t.Helper()
	w.must(json.Unmarshal([]byte(w.shell.ok("", "offsets", topic.name, "-p", fmt.Sprint(n), "--time", at, "-o", "json")), &o))
	return o
}

// timedPlace is a PLACE as it is written, and where it is in a partition.
type timedPlace struct {
	text string
	in   func(*timePartition) int64
}

func placeOf(offset int64) timedPlace {
	return timedPlace{fmt.Sprint(offset), func(*timePartition) int64 { return offset }}
}

func beforeEnd(n int64) timedPlace {
	return timedPlace{fmt.Sprintf("-%d", n), func(p *timePartition) int64 { return max(p.start, p.end()-n) }}
}

func atTime(text string, ms int64) timedPlace {
	return timedPlace{"@" + text, func(p *timePartition) int64 {
		if i := p.atOrAfter(ms); i < len(p.left) {
			return p.left[i].Offset
		}
		return p.end()
	}}
}

// atOrAfter is the index in left of the first record at or after a time, len(left) without one.
func (p *timePartition) atOrAfter(ms int64) int {
	i := slices.IndexFunc(p.left, func(r client.Record) bool { return r.Timestamp.UnixMilli() >= ms })
	if i < 0 {
		return len(p.left)
	}
	return i
}

// moment draws a time as it is written: mostly that of a record, also one that is gone, or a millisecond beside it.
func (w *timeWorld) moment(topic *timeTopic) (string, int64) {
	switch p := topic.partition[w.random.IntN(len(topic.partition))]; w.random.IntN(20) {
	case 0:
		return "0", 0
	case 1: // after all
		return "2027-01-01", time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	case 2:
		if i := p.largest(); i >= 0 {
			return fmt.Sprint(p.left[i].Timestamp.UnixMilli()), p.left[i].Timestamp.UnixMilli()
		}
		return "2", 2
	case 3:
		minutes := w.random.Int64N(180)
		return fmt.Sprintf("-%dm", minutes), testNow.UnixMilli() - minutes*60_000
	default:
		if len(p.all) == 0 {
			return "1", 1
		}
		records := p.all
		if len(p.left) > 0 && w.random.IntN(5) > 0 {
			records = p.left
		}
		ms := records[w.random.IntN(len(records))].Timestamp.UnixMilli() + w.random.Int64N(3) - 1
		if w.random.IntN(2) == 0 {
			return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.999Z07:00"), ms
		}
		return fmt.Sprint(ms), ms
	}
}

func (w *timeWorld) timePlace(topic *timeTopic) timedPlace { return atTime(w.moment(topic)) }

// place draws a PLACE that can be read from in these partitions.
func (w *timeWorld) place(topic *timeTopic, partitions []int) timedPlace {
	least, most := int64(0), int64(1<<40)
	for _, n := range partitions {
		p := topic.partition[n]
		least, most = max(least, p.start), min(most, p.end())
	}
	switch n := w.random.IntN(10); {
	case n == 0:
		return timedPlace{"earliest", func(p *timePartition) int64 { return p.start }}
	case n == 1:
		return timedPlace{"latest", (*timePartition).end}
	case n == 2 && least <= most:
		return placeOf(least + w.random.Int64N(most-least+1))
	case n == 3:
		return beforeEnd(w.random.Int64N(most + 10))
	default:
		return w.timePlace(topic)
	}
}

// ask asks cat and offsets about a topic.
func (w *timeWorld) ask(topic *timeTopic) {
	w.t.Helper()
	partitions, args := w.some(topic)
	w.askCat(topic, partitions, args)
	w.askOffsets(topic, partitions, args)
}

// some draws partitions, and how they are written.
func (w *timeWorld) some(topic *timeTopic) (partitions []int, args []string) {
	switch n := len(topic.partition); w.random.IntN(3) {
	case 0:
		partitions = []int{w.random.IntN(n)}
	case 1:
		partitions = w.random.Perm(n)[:1+w.random.IntN(n)]
	default:
		for i := range n {
			partitions = append(partitions, i)
		}
		return partitions, nil
	}
	for _, n := range partitions {
		args = append(args, "-p", fmt.Sprint(n))
	}
	slices.Sort(partitions)
	return partitions, args
}

func (w *timeWorld) askCat(topic *timeTopic, partitions []int, args []string) {
	w.t.Helper()
	from, until := w.place(topic, partitions), w.place(topic, partitions)
	between := false
	first, low := w.moment(topic)
	second, high := w.moment(topic)
	args = append([]string{"cat", topic.name}, args...)
	switch w.random.IntN(4) {
	case 0: // the rule: everything from one time until another one
		if low > high {
			first, second, low, high = second, first, high, low
		}
		from, until = atTime(first, low), atTime(second, high)
	case 1:
		between = low <= high
		from, until = timedPlace{"earliest", func(p *timePartition) int64 { return p.start }}, timedPlace{"latest", (*timePartition).end}
	case 2:
		between = low <= high
	}
	args = append(args, "--from", from.text, "--until", until.text)
	if between {
		args = append(args, "--between", first+","+second)
	}
	var lists [][]client.Record
	for _, n := range partitions {
		p := topic.partition[n]
		start, end := from.in(p), until.in(p)
		var list []client.Record
		for _, r := range p.left {
			ms := r.Timestamp.UnixMilli()
			if r.Offset >= start && r.Offset < end && (!between || ms >= low && ms < high) {
				list = append(list, r)
			}
		}
		lists = append(lists, list)
	}
	w.compare(mergedByTime(lists), args)
}

// compare runs cat in one of its modes.
func (w *timeWorld) compare(want []client.Record, args []string) {
	w.t.Helper()
	if most := w.random.IntN(30); w.random.IntN(5) == 0 {
		args = append(args, "--max-records", fmt.Sprint(most))
		if most > 0 {
			want = want[:min(most, len(want))]
		}
	}
	format := appendRecordJSON
	if w.random.IntN(4) == 0 {
		args = append(args, "-f", `%t %p %o %T`)
		format = func(b []byte, r *client.Record) []byte {
			return fmt.Appendf(b, "%s %d %d %d", r.Topic, r.Partition, r.Offset, r.Timestamp.UnixMilli())
		}
		args[len(args)-1] += `\n`
	} else {
		args = append(args, "-o", "json")
	}
	var text []byte
	for i := range want {
		text = append(format(text, &want[i]), '\n')
	}
	got := w.shell.ok("", args...)
	w.did.cats++
	if got != string(text) {
		w.t.Fatalf("varve %s\n%s", strings.Join(args, " "), difference(got, string(text)))
	}
}

// difference shows the first line that differs.
func difference(got, want string) string {
	one, other := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(one), len(other)) {
		if one[i] != other[i] {
			return fmt.Sprintf("line %d of %d is %.200s\nwant %d lines, that one %.200s", i+1, len(one)-1, one[i], len(other)-1, other[i])
		}
	}
	return "the same"
}

// mergedByTime is what the documentation says of several partitions: of the next record of each the oldest comes first, ties
// by partition.
func mergedByTime(lists [][]client.Record) (merged []client.Record) {
	for {
		best := -1
		for i, list := range lists {
			if len(list) > 0 && (best < 0 || list[0].Timestamp.Before(lists[best][0].Timestamp)) {
				best = i
			}
		}
		if best < 0 {
			return merged
		}
		merged = append(merged, lists[best][0])
		lists[best] = lists[best][1:]
	}
}

// askOffsets asks for the offset at or before a time, or for the largest one.
func (w *timeWorld) askOffsets(topic *timeTopic, partitions []int, args []string) {
	w.t.Helper()
	text, ms := w.moment(topic)
	query, answer := []string{"--time", text}, func(p *timePartition) int { return p.atOrAfter(ms) }
	switch w.random.IntN(8) {
	case 0, 1, 2:
		query, answer = []string{"--before", text}, func(p *timePartition) int { return p.atOrAfter(ms) - 1 }
	case 3:
		query, answer = []string{"--time", "max-timestamp"}, (*timePartition).largest
	}
	if w.random.IntN(4) == 0 {
		query = append(query, "--linearizable")
	}
	args = slices.Concat([]string{"offsets", topic.name, "-o", "json"}, args, query)
	var want bytes.Buffer
	for _, n := range partitions {
		p := topic.partition[n]
		o := partitionOffset{Topic: topic.name, Partition: int32(n), Offset: -1, Timestamp: -1, StartOffset: p.start, EndOffset: p.end(),
			Linearizable: query[len(query)-1] == "--linearizable"}
		if i := answer(p); i >= 0 && i < len(p.left) {
			o.Found, o.Offset, o.Timestamp = true, p.left[i].Offset, p.left[i].Timestamp.UnixMilli()
		}
		w.must(printJSON(&want, o))
	}
	got := w.shell.ok("", args...)
	w.did.lookups++
	if got != want.String() {
		w.t.Fatalf("varve %s\n%s", strings.Join(args, " "), difference(got, want.String()))
	}
}

// sweep asks for every time from which on the answer is another one.
func (w *timeWorld) sweep(topic *timeTopic) {
	w.t.Helper()
	for n, p := range topic.partition {
		newest := int64(-1)
		for i, r := range p.left {
			ms := r.Timestamp.UnixMilli()
			if ms <= newest {
				continue
			}
			newest = ms
			w.sweepAt(topic, int32(n), client.OffsetAtOrAfter(r.Timestamp), i)
			w.sweepAt(topic, int32(n), client.OffsetBefore(r.Timestamp), i-1)
		}
	}
}

// sweepAt wants the record with that index in left, none for -1.
func (w *timeWorld) sweepAt(topic *timeTopic, n int32, query client.OffsetQuery, index int) {
	w.t.Helper()
	found, err := w.client.ListOffsets(w.t.Context(), topic.name, query, n)
	w.must(err)
	w.did.lookups++
	want := client.Record{Offset: -1}
	if index >= 0 {
		want = topic.partition[n].left[index]
	}
	if got := found[0]; got.Found != (index >= 0) || got.Offset != want.Offset || got.Found && !got.Timestamp.Equal(want.Timestamp) {
		w.t.Fatalf("%s/%d: %v is %+v, want offset %d", topic.name, n, query, got, want.Offset)
	}
}

// largest is the index in left of the first record with the largest timestamp, -1 without one.
func (p *timePartition) largest() int {
	best := -1
	for i, r := range p.left {
		if best < 0 || cmp.Less(p.left[best].Timestamp.UnixMilli(), r.Timestamp.UnixMilli()) {
			best = i
		}
	}
	return best
}
