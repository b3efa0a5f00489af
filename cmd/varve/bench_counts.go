package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
)

// countsOptions are the flags of bench counts.
type countsOptions struct {
	dir, segments, metadata string
	lone                    int64
	producers               int
	sharing                 time.Duration
	keep                    bool // the topic of sharing: what is left of a deleted one is removed a minute later
	spreads                 []int32
	requests                int64
	full                    byteSize
	lookups                 []int64
	idle                    time.Duration
}

// newBenchCountsCommand counts what must hold on every machine.
func newBenchCountsCommand(a *app) *cobra.Command {
	var o countsOptions
	cmd := &cobra.Command{
		Use:   "counts",
		Short: "Count what does not depend on the machine: shared flushes, commit writes, lookups, idling",
		Long: `Start a gateway on a temporary folder, or on --segments and --metadata as 'varve bench compare' does, and count:
how a lone append fares, how many flushes many producers of single records share, what commits and checkpoints of 1, 100
and 10,000 partitions a flush take, how many PUTs a GiB takes when as much comes as the gateway takes, what a time
lookup reads as the log grows, and what an idle gateway does.

Checkpoints follow commits: a steady state has hundreds of commits (--requests).`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.benchCounts(cmd.Context(), &o)
			if err != nil {
				return err
			}
			return a.print(r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "folder for temporary data (default: the system's)")
	f.StringVar(&o.segments, "segments", "", "bucket of the gateway (default: a folder)")
	f.StringVar(&o.metadata, "metadata", "", "table of the gateway (default: a file)")
	f.Int64Var(&o.lone, "lone", 100, "lone appends")
	f.DurationVar(&o.sharing, "duration", 3*time.Second, "how long the producers of single records go on")
	f.IntVar(&o.producers, "producers", 1000, "producers of single records")
	f.Int32SliceVar(&o.spreads, "spread", []int32{1, 100, 10_000}, "partitions a flush")
	f.Int64Var(&o.requests, "requests", 300, "requests to each number of partitions a flush; of very many partitions at most 4,000,000 appends")
	o.full = 256 * mib
	f.Var(&o.full, "full", "bytes to append to each number of partitions as fast as it goes; 0: none")
	f.Int64SliceVar(&o.lookups, "lookup-records", []int64{10_000, 100_000, 1_000_000}, "sizes of the logs in which times are looked up")
	f.DurationVar(&o.idle, "idle", 10*time.Second, "how long to idle")
	return cmd
}

// spreadCount is what flushes of many partitions took.
type spreadCount struct {
	Partitions int32     `json:"partitions"`
	Requests   int64     `json:"requests"`
	Spans      float64   `json:"spans_per_flush"`
	Commits    float64   `json:"commit_writes_per_cycle"`
	Ack        quantiles `json:"ack"`
	Costs      costs     `json:"costs"`
	// CheckpointShare is write units of checkpoints for each of commits.
	CheckpointShare float64 `json:"checkpoint_units_per_commit_unit"`
	// Full is what as many bytes as the gateway takes cost.
	Full *fullCount `json:"full,omitempty"`
}

// fullCount is what a load without a pace took.
type fullCount struct {
	Bytes      int64   `json:"bytes"`
	PutsPerGiB float64 `json:"object_puts_per_gib"` // of batches, with their headers
	Spans      float64 `json:"spans_per_flush"`
	Commits    float64 `json:"commit_writes_per_cycle"`
	Costs      costs   `json:"costs"`
}

// sharedCount is what many producers of single records shared.
type sharedCount struct {
	Producers int       `json:"producers"`
	Appends   int64     `json:"appends"`
	Flushes   uint64    `json:"flushes"`
	Commits   uint64    `json:"commit_writes"`
	Ack       quantiles `json:"ack"`
}

// idleCount is what a gateway did while nobody wanted anything.
type idleCount struct {
	Seconds float64 `json:"seconds"`
	Costs   costs   `json:"costs"`
}

// countsReport is what `varve bench counts` prints.
type countsReport struct {
	Bench         string         `json:"bench"`
	LoneCommitted quantiles      `json:"lone_committed_ack"`
	LoneBuffered  quantiles      `json:"lone_buffered_ack"`
	Shared        sharedCount    `json:"shared"`
	Spread        []spreadCount  `json:"spread"`
	Lookups       []lookupReport `json:"lookups"`
	Idle          idleCount      `json:"idle"`
}

func (r *countsReport) text() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-24s "+format+"\n", append([]any{name}, args...)...)
	}
	line("lone append, committed", "%s", r.LoneCommitted)
	line("lone append, buffered", "%s", r.LoneBuffered)
	s := r.Shared
	line(fmt.Sprintf("%d producers", s.Producers), "%d appends of one record shared %d flushes and %d commits; ack %s", s.Appends, s.Flushes, s.Commits, s.Ack)
	for _, s := range r.Spread {
		line(fmt.Sprintf("%d partitions", s.Partitions), "%.0f spans a flush, %.2f commit writes a cycle, %.0f bytes a span; %d requests, %d cycles, %d checkpoint rows; "+
			"write units: %d of commits, %d of checkpoints (%.2f); ack %s",
			s.Spans, s.Commits, s.Costs.BytesPerSpan, s.Requests, s.Costs.Cycles, s.Costs.CheckpointWrites, s.Costs.CommitUnits, s.Costs.CheckpointUnits, s.CheckpointShare, s.Ack)
		if f := s.Full; f != nil {
			line(fmt.Sprintf("%d partitions, full", s.Partitions), "%.0f PUTs a GiB, %.0f spans a flush, %.2f commit writes a cycle; %s in %d flushes",
				f.PutsPerGiB, f.Spans, f.Commits, sizeText(uint64(f.Bytes)), f.Costs.Flushes)
		}
	}
	for _, l := range r.Lookups {
		for _, p := range l.Passes {
			line(fmt.Sprintf("lookup in %d", l.Records), "%s: %.3f table reads, %.3f GETs of %s; %s", p.Pass, p.TableReads, p.Gets, sizeText(uint64(p.GetBytes)), p.Answer)
		}
	}
	i := r.Idle.Costs
	line(fmt.Sprintf("idle for %.0f s", r.Idle.Seconds), "%d PUTs, %d GETs, %d LISTs, %d table writes (%d of them beats), %d table reads, CPU %.3f s, resident %s",
		i.ObjectPuts, i.ObjectGets, i.ObjectLists, i.TableWrites, i.BeatWrites, i.TableReads, i.ServerCPU, sizeText(i.ResidentBytes))
	return b.String()
}

func (a *app) benchCounts(ctx context.Context, o *countsOptions) (r *countsReport, err error) {
	if o.producers < 1 || o.producers > maxSenders || slices.ContainsFunc(o.spreads, func(n int32) bool { return n < 1 }) {
		return nil, usagef("want 1 to %d producers, and at least 1 partition a flush", maxSenders)
	}
	dir, err := os.MkdirTemp(o.dir, "varve-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	own, stop, err := a.ownGateway(ctx, dir, o.segments, o.metadata)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	r = &countsReport{Bench: "counts"}
	for _, step := range []func(context.Context, *countsOptions, *countsReport) error{
		own.countLone, own.countShared, own.countSpread, own.countLookups, own.countIdle,
	} {
		if ctx.Err() != nil {
			break
		}
		if err := step(ctx, o, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// singles are producers of single small records.
func singles(producers int) loadOptions {
	return loadOptions{partitions: 8, recordSize: 100, batchRecords: 1, producers: producers, inFlight: 1, acks: "committed", codec: "none"}
}

// countLone appends one record at a time, each to a gateway that has nothing else to do.
func (a *app) countLone(ctx context.Context, co *countsOptions, r *countsReport) error {
	rate, count := 25.0, co.lone
	if co.segments != "" { // flushes are spaced by a quarter of a second there
		rate, count = 3, max(1, co.lone/5)
	}
	for acks, into := range map[string]*quantiles{"committed": &r.LoneCommitted, "buffered": &r.LoneBuffered} {
		o := singles(1)
		o.partitions, o.rate, o.acks = 1, rate, acks
		p, err := a.benchProduce(ctx, "", &o, limit{records: count}, 200*time.Millisecond)
		if err != nil {
			return err
		}
		*into = p.Ack
	}
	return nil
}

func (a *app) countShared(ctx context.Context, co *countsOptions, r *countsReport) error {
	o := singles(co.producers)
	o.keep = co.keep
	p, err := a.benchProduce(ctx, "", &o, limit{duration: co.sharing}, co.sharing/10)
	if err != nil {
		return err
	}
	r.Shared = sharedCount{co.producers, p.Batches, p.Costs.Flushes, p.Costs.CommitWrites, p.Ack}
	return nil
}

// countSpread appends to many partitions at once, after each has been appended to: a partition's first append
// makes its row.
func (a *app) countSpread(ctx context.Context, co *countsOptions, r *countsReport) error {
	const most = 4_000_000
	for _, spread := range co.spreads {
		o := singles(1)
		o.partitions, o.spread = spread, spread
		requests := min(co.requests, max(20, most/int64(spread)))
		p, err := a.benchProduce(ctx, "", &o, limit{records: requests * int64(spread)}, time.Millisecond)
		if err != nil {
			return err
		}
		s := spreadCount{Partitions: spread, Requests: p.Batches, Ack: p.Ack, Costs: p.Costs}
		s.Spans, s.Commits = p.Costs.perFlush()
		if p.Costs.CommitUnits > 0 {
			s.CheckpointShare = float64(p.Costs.CheckpointUnits) / float64(p.Costs.CommitUnits)
		}
		if co.full > 0 && ctx.Err() == nil {
			if s.Full, err = a.countFull(ctx, co, spread); err != nil {
				return err
			}
		}
		r.Spread = append(r.Spread, s)
	}
	return nil
}

// countFull appends as fast as it goes: requests of about a MiB, or of 700 bytes for each of very many partitions.
func (a *app) countFull(ctx context.Context, co *countsOptions, spread int32) (*fullCount, error) {
	o := loadOptions{partitions: spread, recordSize: kib, batchRecords: 1000, producers: 8, inFlight: 4, acks: "committed", codec: "none"}
	if spread > 1 {
		o.spread, o.batchRecords, o.recordSize = spread, 1, byteSize(max(mib/int(spread), 700))
		o.inFlight = int(max(1, min(4, 32*mib/(int64(o.producers)*int64(o.recordSize)*int64(spread)))))
	}
	p, err := a.benchProduce(ctx, "", &o, limit{bytes: int64(co.full)}, time.Millisecond)
	if err != nil {
		return nil, err
	}
	f := &fullCount{Bytes: p.Bytes, Costs: p.Costs}
	if stored := p.Costs.AppendedBytes; stored > 0 { // a batch of one record takes a tenth more than that
		f.PutsPerGiB = float64(p.Costs.ObjectPuts) * gib / float64(stored)
	}
	f.Spans, f.Commits = p.Costs.perFlush()
	return f, nil
}

func (a *app) countLookups(ctx context.Context, co *countsOptions, r *countsReport) error {
	for _, records := range co.lookups {
		o := lookupOptions{lookups: 1000, concurrency: 4, records: records, recordSize: 20, batchRecords: 100, partitions: 1}
		l, err := a.benchLookup(ctx, "", &o)
		if err != nil {
			return err
		}
		r.Lookups = append(r.Lookups, *l)
	}
	return nil
}

// countIdle waits until what was appended is settled, and then just waits.
func (a *app) countIdle(ctx context.Context, co *countsOptions, r *countsReport) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := settle(ctx, c); err != nil {
		return err
	}
	m, err := startMeter(ctx, c)
	if err != nil {
		return err
	}
	began := time.Now()
	sleep(ctx, co.idle)
	r.Idle.Costs, err = m.stop(ctx, 0)
	r.Idle.Seconds = time.Since(began).Seconds()
	return err
}

// settle waits until a gateway has written nothing but beats for a second: checkpoints follow the last
// append. It waits for half a minute at most.
func settle(ctx context.Context, c *client.Client) error {
	const quiet, patience = time.Second, 30 * time.Second
	var last uint64
	for began := time.Now(); time.Since(began) < patience; {
		u, err := c.Usage(ctx)
		if err != nil {
			return err
		}
		writes := u.GetTableWrites() - u.GetBeatWrites() + u.GetObjectPuts()
		if writes == last || !sleep(ctx, quiet) {
			return nil
		}
		last = writes
	}
	return nil
}
