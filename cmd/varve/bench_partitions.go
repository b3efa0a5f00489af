package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/bolttable"
	"github.com/varvelog/varve/metadata/memtable"
)

// inactiveCount is a gateway over a table of partitions that were appended to long ago.
type inactiveCount struct {
	Partitions int   `json:"partitions"`
	Active     int   `json:"active"`
	TableBytes int64 `json:"table_bytes"`
	// Start is until the gateway was ready; the calls are those to the table until then.
	Start      float64 `json:"start_seconds"`
	StartCalls uint64  `json:"start_table_calls"`
	// Resident and Heap are memory right after the start, ActiveHeap with the active partitions, in bytes. Resident
	// counts pages of the table's file that were read.
	Resident   uint64 `json:"resident_bytes"`
	Heap       uint64 `json:"heap_bytes"`
	ActiveHeap uint64 `json:"active_heap_bytes"`
	// First are the first appends to all active partitions.
	First      float64 `json:"first_appends_seconds"`
	FirstCalls uint64  `json:"first_appends_table_calls"`
	// Again are appends to all of them once more.
	Again      float64 `json:"appends_again_seconds"`
	AgainCalls uint64  `json:"appends_again_table_calls"`
	Idle       float64 `json:"idle_seconds"`
	IdleCalls  uint64  `json:"idle_table_calls"`
	IdleCPU    float64 `json:"idle_cpu_seconds"`
}

// partPartitions compares a table of a million partitions with one of as many as are active.
func partPartitions(ctx context.Context, a *app, o *allOptions) (any, []figure, error) {
	active := pickSize(o, 1000, 50)
	var counts []inactiveCount
	for _, partitions := range pickSize(o, []int{1000, 1_000_000}, []int{50, 5000}) {
		c := inactiveCount{Partitions: partitions, Active: active, Idle: pickSize(o, time.Minute, 300*time.Millisecond).Seconds()}
		if err := a.countInactive(ctx, o, &c); err != nil {
			return nil, nil, err
		}
		counts = append(counts, c)
	}
	few, many := &counts[0], &counts[1]
	name := func(what string) string {
		return fmt.Sprintf("%s, %s partitions", what, thousands(int64(many.Partitions)))
	}
	return counts, []figure{
		atMost(name("table calls of a start"), float64(many.StartCalls), float64(few.StartCalls), fmt.Sprintf("as with %s", thousands(int64(few.Partitions)))),
		atMost(name("table calls of the first appends"), float64(many.FirstCalls), float64(few.FirstCalls)*1.1, fmt.Sprintf("1.1 x those with %s", thousands(int64(few.Partitions)))),
		atMost(name("table calls in an idle minute"), float64(many.IdleCalls), 0, ""),
		told(name("start"), many.Start, "s"), told("start with the active ones alone", few.Start, "s"),
		told(name("heap after the start"), float64(many.Heap)/mib, "MiB"), told("heap with the active ones alone", float64(few.Heap)/mib, "MiB"),
		told(name("heap with the active ones"), float64(many.ActiveHeap)/mib, "MiB"),
		told(name("resident after the start"), float64(many.Resident)/mib, "MiB"),
		told(name("first appends to the active ones"), many.First, "s"), told("first appends with the active ones alone", few.First, "s"),
		told(name("CPU of an idle minute"), many.IdleCPU, "s"), told(name("table"), float64(many.TableBytes)/mib, "MiB"),
	}, nil
}

func (a *app) countInactive(ctx context.Context, o *allOptions, c *inactiveCount) (err error) {
	dir, remove, err := o.scratch()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	path := filepath.Join(dir, "metadata.db")
	topics, err := writePartitions(ctx, path, c.Partitions)
	if err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil {
		c.TableBytes = info.Size()
	}
	began := time.Now()
	own, stop, err := a.ownGateway(ctx, dir, "", "")
	if err != nil {
		return err
	}
	c.Start = time.Since(began).Seconds()
	defer func() { err = errors.Join(err, stop()) }()
	client, err := own.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	u, err := client.Usage(ctx)
	if err != nil {
		return err
	}
	c.StartCalls, c.Resident, c.Heap = tableCalls(u), u.GetResidentBytes(), u.GetHeapBytes()
	for _, round := range []struct {
		seconds *float64
		calls   *uint64
	}{{&c.First, &c.FirstCalls}, {&c.Again, &c.AgainCalls}} {
		if *round.seconds, *round.calls, err = own.appendToSome(ctx, client, topics, c.Active); err != nil {
			return err
		}
	}
	if u, err = client.Usage(ctx); err != nil {
		return err
	}
	c.ActiveHeap = u.GetHeapBytes()
	if err := settle(ctx, client); err != nil {
		return err
	}
	if u, err = client.Usage(ctx); err != nil {
		return err
	}
	sleep(ctx, seconds(c.Idle))
	after, err := client.Usage(ctx)
	c.IdleCalls, c.IdleCPU = tableCalls(after)-tableCalls(u), after.GetCpuSeconds()-u.GetCpuSeconds()
	return err
}

func tableCalls(u *varvev1.UsageResponse) uint64 { return u.GetTableReads() + u.GetTableWrites() }

// appendToSome appends a record to so many partitions, spread evenly over the topics.
func (a *app) appendToSome(ctx context.Context, c *client.Client, topics []*metadata.Topic, active int) (took float64, calls uint64, err error) {
	w := a.newWire(a.servers[0], len(topics))
	defer w.close()
	before, err := c.Usage(ctx)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	var group errgroup.Group
	for i, topic := range topics {
		share := active / len(topics)
		if i == 0 {
			share += active % len(topics)
		}
		step := topic.Partitions / int32(share)
		var partitions []int32
		for n := range int32(share) {
			partitions = append(partitions, n*step)
		}
		group.Go(func() error {
			request, err := oneEach(topic.Name, partitions, markSize)
			if err != nil {
				return err
			}
			return w.produce(ctx, request)
		})
	}
	if err := group.Wait(); err != nil {
		return 0, 0, err
	}
	took = time.Since(began).Seconds()
	after, err := c.Usage(ctx)
	return took, tableCalls(after) - tableCalls(before), err
}

// writePartitions makes a table with the rows of so many partitions, each of which was appended to once, by a gateway
// that left.
func writePartitions(ctx context.Context, path string, partitions int) (topics []*metadata.Topic, err error) {
	table, err := bolttable.Open(path, bolttable.Options{NoSync: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, table.Close()) }()
	lease, err := releasedLease(ctx)
	if err != nil {
		return nil, err
	}
	catalog := metadata.NewTopics(table)
	var group errgroup.Group
	group.SetLimit(2000) // puts that wait together share a commit
	for left := partitions; left > 0; left -= metadata.MaxPartitions {
		topic, err := catalog.Create(ctx, fmt.Sprintf("inactive-%d", len(topics)), int32(min(left, metadata.MaxPartitions)), nil, time.Now())
		if err != nil {
			return nil, errors.Join(err, group.Wait())
		}
		topics = append(topics, topic)
		for n := range topic.Partitions {
			row := lease
			row.Key, row.Nonce = metadata.PartitionID{Topic: topic.ID, Number: n}.LeaseKey(), metadata.NewNonce()
			group.Go(func() error { return table.Put(ctx, row, metadata.IfAbsent()) })
		}
	}
	return topics, group.Wait()
}

// releasedLease is the lease row of a partition with one entry in its index. It does not say whose it is.
func releasedLease(ctx context.Context) (row metadata.Row, err error) {
	table, id, uploader := memtable.New(), metadata.PartitionID{}, metadata.NewGatewayID(time.Now())
	journal, err := metadata.OpenJournal(ctx, table, uploader)
	if err != nil {
		return row, err
	}
	p, lease, err := metadata.Acquire(ctx, table, id, journal, nil)
	if err != nil {
		return row, err
	}
	now := time.Now().UnixMilli()
	_, change := p.Judge(&metadata.Reference{Partition: id, Uploader: uploader, Number: 1, Batches: []metadata.Batch{{
		Position: timesPosition, Size: kib, Offsets: 1, Records: 1, MinTimestamp: now, MaxTimestamp: now, LastTimestamp: now,
		ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}}})
	if err := p.Apply(change, 1); err != nil {
		return row, err
	}
	if err := p.Checkpoint(lease, 1, true).Write(ctx, table, lease); err != nil {
		return row, err
	}
	return table.Get(ctx, id.LeaseKey(), metadata.Strong)
}
