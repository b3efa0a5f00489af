package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/bolttable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

const (
	// timesRecords are in each batch of a log that lookups are tried on, and each batch is an index entry.
	timesRecords = 1000
	timesFirst   = 1_000_000_000_000 // September 2001, in ms
	timesStep    = 1000              // ms from one record to the next
	// timesPosition is where a batch lies in its segment.
	timesPosition = 64
)

// timesCount is lookups in one log.
type timesCount struct {
	Records int64 `json:"records"`
	Entries int64 `json:"index_entries"`
	// First are the first lookups after the start, when nothing of the index is in memory; Then those that follow, in
	// turns with those of the other logs; each one at a time. Flood are sixteen at once.
	First lookupPass `json:"first"`
	Then  lookupPass `json:"then"`
	Flood lookupPass `json:"flood"`
}

// timesReport is what time lookups took as the log grew.
type timesReport struct {
	IndexCacheBytes int64        `json:"index_cache_bytes"`
	Logs            []timesCount `json:"logs"`
}

// partTimes asks for times in logs of one partition. Their indexes are written straight into an embedded table, as
// checkpoints write them, and their batches are made when they are read: 10^8 records would take hours and a
// disk. Each answer is checked.
func partTimes(ctx context.Context, a *app, o *allOptions) (_ any, _ []figure, err error) {
	t := &timesBench{app: a, lookups: pickSize(o, 2000, 200), rounds: pickSize(o, 5, 1), flood: pickSize(o, 3*time.Second, 100*time.Millisecond)}
	sizes := pickSize(o, []int64{10_000, 100_000, 1_000_000, 10_000_000, 100_000_000}, []int64{10_000, 100_000})
	dir, remove, err := o.scratch()
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	defer func() { err = errors.Join(err, t.close()) }()
	if err := t.open(ctx, dir, sizes); err != nil {
		return nil, nil, err
	}
	if err := t.run(ctx); err != nil {
		return nil, nil, err
	}
	logs := t.report.Logs
	small, large := &logs[0], &logs[len(logs)-1]
	figures := []figure{
		atMost(fmt.Sprintf("lookup p99 in %s records", thousands(large.Records)), large.Then.Answer.P99/small.Then.Answer.P99, 2, "x that in "+thousands(small.Records)),
		// The load is in the same process: its CPU is counted too.
		atLeast("lookups for 2 CPU seconds, index in memory", 2000/large.Flood.ServerCPU, 10_000, "the load's work included"),
	}
	for i := range logs {
		l := &logs[i]
		name := thousands(l.Records) + " records: "
		figures = append(figures,
			atMost(name+"GETs a lookup", max(l.First.Gets, l.Then.Gets), 1, ""),
			atMost(name+"table reads a lookup, at first", l.First.TableReads, 2, ""),
			told(name+"table reads a lookup, then", l.Then.TableReads, ""),
			told(name+"p50", l.Then.Answer.P50, "ms"), told(name+"p99", l.Then.Answer.P99, "ms"), told(name+"lookups a second", l.Flood.Rate, "on the load's own cores"))
	}
	return &t.report, figures, nil
}

// timesBench is a gateway over logs that were never appended.
type timesBench struct {
	app     *app // whose server is the gateway
	lookups int
	rounds  int
	flood   time.Duration
	fleet   *fleet
	logs    []timesLog
	report  timesReport
}

// timesLog is one of them. Its index names segments of an uploader of its own.
type timesLog struct {
	topic   string
	records int64
}

func (t *timesBench) close() error {
	if t.fleet == nil {
		return nil
	}
	return t.fleet.close()
}

func (t *timesBench) open(ctx context.Context, dir string, sizes []int64) (err error) {
	if t.fleet, err = t.app.newFleet(ctx, &clusterOptions{flush: localPace, lease: 5 * time.Second, made: new([]weak.Pointer[gateway.Gateway])}); err != nil {
		return err
	}
	if err := t.fleet.useFiles(dir); err != nil {
		return err
	}
	made, err := newMadeStore(t.fleet.store)
	if err != nil {
		return err
	}
	t.fleet.store = made
	// As many as the largest index has: this is about an index in memory.
	t.report.IndexCacheBytes = 64 * mib
	t.fleet.config.IndexCacheBytes = t.report.IndexCacheBytes
	if err := t.write(ctx, filepath.Join(dir, "made.db"), made, sizes); err != nil {
		return err
	}
	if err := t.fleet.grow(ctx, 1); err != nil {
		return err
	}
	own := *t.app
	own.servers = []string{t.fleet.members[0].url}
	t.app = &own
	return nil
}

// write makes the logs' rows in a table without fsyncs, and puts it in place of the fleet's.
func (t *timesBench) write(ctx context.Context, path string, made *madeStore, sizes []int64) error {
	quick, err := bolttable.Open(path, bolttable.Options{NoSync: true})
	if err != nil {
		return err
	}
	for _, records := range sizes {
		l := timesLog{topic: fmt.Sprintf("times-%d", records), records: records}
		topic, err := metadata.NewTopics(quick).Create(ctx, l.topic, 1, nil, time.Now())
		if err == nil {
			err = made.writeIndex(ctx, quick, metadata.PartitionID{Topic: topic.ID}, records/timesRecords)
		}
		if err != nil {
			return errors.Join(err, quick.Close())
		}
		t.logs = append(t.logs, l)
		t.report.Logs = append(t.report.Logs, timesCount{Records: records, Entries: records / timesRecords})
	}
	if err := quick.Close(); err != nil {
		return err
	}
	table, err := bolttable.Open(path, bolttable.Options{})
	if err != nil {
		return err
	}
	t.fleet.table = table
	t.fleet.clean = append([]func() error{table.Close}, t.fleet.clean...)
	return nil
}

func (t *timesBench) run(ctx context.Context) error {
	w := t.app.newWire(t.app.servers[0], 16)
	defer w.close()
	for i := range t.logs {
		// The first append has the gateway take the partition: from then on its view is in memory.
		if err := t.logs[i].append(ctx, w); err != nil {
			return err
		}
	}
	then := make([]*latencies, len(t.logs))
	for i := range t.logs {
		first := newLatencies()
		if err := t.pass(ctx, w, i, t.lookups, 1, first, &t.report.Logs[i].First); err != nil {
			return err
		}
		// Until every page of its index was read once.
		if err := t.pass(ctx, w, i, 10*t.lookups, 8, newLatencies(), &lookupPass{}); err != nil {
			return err
		}
		then[i] = newLatencies()
	}
	for range t.rounds {
		for i := range t.logs {
			if err := t.pass(ctx, w, i, t.lookups, 1, then[i], &t.report.Logs[i].Then); err != nil {
				return err
			}
		}
	}
	for i := range t.logs {
		running, stop := context.WithTimeout(ctx, t.flood)
		err := t.pass(running, w, i, 1<<40, 16, newLatencies(), &t.report.Logs[i].Flood)
		stop()
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// pass asks one log so many times, or until ctx ends. times gathers over passes; what else is in the pass is of the last.
func (t *timesBench) pass(ctx context.Context, w *wire, log, lookups, concurrency int, times *latencies, into *lookupPass) error {
	c, err := t.app.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := startMeter(ctx, c)
	if err != nil {
		return err
	}
	began := time.Now()
	var next, asked atomic.Int64
	group, running := errgroup.WithContext(ctx)
	for range concurrency {
		group.Go(func() error {
			for next.Add(1) <= int64(lookups) && running.Err() == nil {
				called := time.Now()
				if err := t.logs[log].lookUp(running, w); err != nil {
					if ctx.Err() != nil {
						return nil
					}
					return err
				}
				times.add(time.Since(called))
				asked.Add(1)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	elapsed := time.Since(began).Seconds()
	used, err := m.stop(ctx, 0)
	if err != nil {
		return err
	}
	n := float64(max(1, asked.Load()))
	*into = lookupPass{Seconds: elapsed, Rate: n / elapsed, Answer: times.quantiles(), TableReads: float64(used.TableReads) / n,
		Gets: float64(used.ObjectGets) / n, GetBytes: float64(used.ObjectGetBytes) / n, ServerCPU: used.ServerCPU * 1000 / n}
	return nil
}

// lookUp asks for a random time, and checks the answer: the records lie a second apart.
func (l *timesLog) lookUp(ctx context.Context, w *wire) error {
	at := timesFirst + rand.Int64N((l.records-1)*timesStep) + 1
	request, err := proto.Marshal(&varvev1.ListOffsetsRequest{Topic: l.topic, Query: &varvev1.ListOffsetsRequest_AtOrAfter{AtOrAfter: at}})
	if err != nil {
		return err
	}
	data, err := w.call(ctx, varvev1connect.LogServiceListOffsetsProcedure, request)
	if err != nil {
		return err
	}
	var answer varvev1.ListOffsetsResponse
	if err := proto.Unmarshal(data, &answer); err != nil {
		return err
	}
	want := (at - timesFirst + timesStep - 1) / timesStep
	if got := answer.GetOffsets(); len(got) != 1 || !got[0].GetFound() || got[0].GetOffset() != want {
		return fmt.Errorf("the first offset at or after %d in %s is %d; the answer was %v", at, l.topic, want, got)
	}
	return nil
}

func (l *timesLog) append(ctx context.Context, w *wire) error {
	r, err := newReadyRequest(batchShape{recordSize: 20, records: 1}, newRandom())
	if err != nil {
		return err
	}
	r.address(l.topic, 0, varvev1.Acks_ACKS_COMMITTED)
	r.stamp(timesFirst+l.records*timesStep, batch.NoProducer)
	return w.produce(ctx, r.request)
}

// madeStore is a bucket with segments that are made when they are read: segment n of each uploader that has
// an index holds the n-th thousand of its records.
type madeStore struct {
	segments.Store
	mu       sync.Mutex
	batch    *readyRequest
	indexing map[segments.GatewayID]bool
}

func newMadeStore(below segments.Store) (*madeStore, error) {
	ready, err := newReadyRequest(batchShape{recordSize: 20, records: timesRecords, codec: client.CodecNone, step: timesStep}, newRandom())
	return &madeStore{Store: below, batch: ready, indexing: make(map[segments.GatewayID]bool)}, err
}

// timeOf is the time of the first record in a segment.
func timeOf(number uint64) int64 { return timesFirst + int64(number-1)*timesRecords*timesStep }

// Get implements [segments.Store].
func (s *madeStore) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	_, uploader, number, err := segments.ParseObjectKey(key)
	if err != nil || !s.indexing[uploader] {
		return s.Store.Get(ctx, key, offset, length)
	}
	size := timesPosition + s.batch.size() // nothing but zeros is before the batch: nobody reads it, but for the block that it is in
	start, count := segments.ResolveRange(offset, length, size)
	data := make([]byte, count)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batch.stamp(timeOf(number), batch.NoProducer)
	if start+count > timesPosition {
		copy(data[max(timesPosition-start, 0):], s.batch.batch[max(start-timesPosition, 0):])
	}
	return data, size, nil
}

// writeIndex writes the rows of a partition that has so many entries, by the state machine and its checkpoints, and
// releases it.
func (s *madeStore) writeIndex(ctx context.Context, table metadata.Table, id metadata.PartitionID, entries int64) error {
	uploader := metadata.NewGatewayID(time.Now())
	s.indexing[segments.GatewayID(uploader)] = true
	journal, err := metadata.OpenJournal(ctx, table, uploader)
	if err != nil {
		return err
	}
	p, lease, err := metadata.Acquire(ctx, table, id, journal, nil)
	if err != nil {
		return err
	}
	const everyEntries = 64 // a page, as a gateway under load writes them
	for n := range uint64(entries) {
		first := timeOf(n + 1)
		last := first + (timesRecords-1)*timesStep
		_, change := p.Judge(&metadata.Reference{Partition: id, Uploader: uploader, Number: n + 1, Previous: n, Batches: []metadata.Batch{{
			Position: timesPosition, Size: int32(s.batch.size()), Offsets: timesRecords, Records: timesRecords,
			MinTimestamp: first, MaxTimestamp: last, LastTimestamp: last, ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}}})
		if change == nil {
			return errors.New("a reference of the index was not judged")
		}
		if err := p.Apply(change, n+1); err != nil {
			return err
		}
		if end := int64(n+1) == entries; end || (n+1)%everyEntries == 0 {
			plan := p.Checkpoint(lease, n+1, end)
			if err := plan.Write(ctx, table, lease); err != nil {
				return err
			}
			p.Done(plan)
		}
	}
	return nil
}
