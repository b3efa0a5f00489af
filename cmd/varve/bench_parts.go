package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

func compareOptions(o *allOptions) *floorOptions {
	f := &floorOptions{dir: o.dir, readers: 2, readBytes: 256 * mib, duration: pickSize(o, 2*time.Second, 200*time.Millisecond)}
	f.partitions, f.recordSize, f.batchSize, f.producers, f.inFlight, f.acks, f.codec = 8, kib, mib, 8, 4, "committed", "none"
	if o.quick {
		f.readBytes, f.batchSize = 8*mib, 64*kib
	}
	return f
}

func partFiles(ctx context.Context, a *app, o *allOptions) (any, []figure, error) {
	r, err := a.benchCompare(ctx, compareOptions(o), pickSize(o, 5, 1))
	if err != nil {
		return nil, nil, err
	}
	return r, []figure{
		atMost("produce of 1 MiB batches, server CPU", r.Produce, 1.3, "x the floor"),
		atMost("consume, server CPU", r.Consume, 1.3, "x the floor"),
		atMost("object PUTs under load", r.Puts, 140, "a GiB"),
		told("produce", r.median(func(c *compareRound) float64 { return c.Produce.MiB }), "MiB/s"),
		told("consume", r.median(func(c *compareRound) float64 { return c.Consume.MiB }), "MiB/s"),
	}, nil
}

func partBucket(ctx context.Context, a *app, o *allOptions) (any, []figure, error) {
	f := compareOptions(o)
	f.segments, f.metadata = o.segments, o.metadata
	f.inFlight = 8 // 64 MiB: what is on its way bounds what goes through, and a bare client with 4 callers has 32
	r, err := a.benchCompare(ctx, f, pickSize(o, 4, 1))
	if err != nil {
		return nil, nil, err
	}
	return r, []figure{
		atMost("produce of 1 MiB batches, server CPU", r.Produce, 1.3, "x bare server and bare client"),
		atLeast("produce, throughput", r.Put, 0.8, "of the fastest bare S3 client"),
		atMost("object PUTs under load", r.Puts, 140, "a GiB"),
		told("consume from the bucket, server CPU", r.Consume, "x the floor on files"),
		told("produce", r.median(func(c *compareRound) float64 { return c.Produce.MiB }), "MiB/s"),
	}, nil
}

// smallReport is what requests of few records came to.
type smallReport struct {
	produceReport
	// Of the server's process: all that it did, divided by the requests.
	AllocationsPerRequest    float64 `json:"allocations_per_request"`
	AllocatedBytesPerRequest float64 `json:"allocated_bytes_per_request"`
	ServerCPUPerRequest      float64 `json:"server_cpu_us_per_request"`
	BenchCPUPerRequest       float64 `json:"bench_cpu_us_per_request"`
}

// partSmall sends requests of 10 records of 100 bytes. The load shares the cores with the gateway.
func partSmall(ctx context.Context, a *app, o *allOptions) (_ any, _ []figure, err error) {
	dir, remove, err := o.scratch()
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	own, stop, err := a.ownGateway(ctx, dir, "", "")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	l := loadOptions{partitions: 8, recordSize: 100, batchRecords: 10, producers: 64, inFlight: 2, acks: "committed", codec: "none"}
	// Once to warm up: connections, pools, the partitions' first appends.
	if _, err := own.benchProduce(ctx, "", &l, limit{duration: pickSize(o, time.Second, 50*time.Millisecond)}, 0); err != nil {
		return nil, nil, err
	}
	before, err := scrape(ctx, own.servers[0])
	if err != nil {
		return nil, nil, err
	}
	p, err := own.benchProduce(ctx, "", &l, limit{duration: pickSize(o, 10*time.Second, 200*time.Millisecond)}, 0)
	if err != nil {
		return nil, nil, err
	}
	after, err := scrape(ctx, own.servers[0])
	if err != nil {
		return nil, nil, err
	}
	each := func(v float64) float64 { return v / float64(max(1, p.Batches)) }
	r := &smallReport{produceReport: *p,
		AllocationsPerRequest:    each(after["go_memstats_mallocs_total"] - before["go_memstats_mallocs_total"]),
		AllocatedBytesPerRequest: each(after["go_memstats_alloc_bytes_total"] - before["go_memstats_alloc_bytes_total"]),
		ServerCPUPerRequest:      each(p.Costs.ServerCPU * 1e6), BenchCPUPerRequest: each(p.Costs.BenchCPU * 1e6)}
	return r, []figure{
		// What others do on the machine meanwhile slows a run down, and costs it hardly any CPU.
		atLeast("records in requests of 10, for 2 CPU seconds", 20e6/(r.ServerCPUPerRequest+r.BenchCPUPerRequest), 50_000, "the load's work included"),
		told("requests of 10 records", p.Rate, "records/s, on the load's own cores"),
		told("allocations", r.AllocationsPerRequest, "a request"),
		told("allocated", r.AllocatedBytesPerRequest, "bytes a request"),
		told("server CPU", r.ServerCPUPerRequest, "µs a request"),
		told("load's CPU", r.BenchCPUPerRequest, "µs a request"),
	}, nil
}

// scrape reads the metrics of a gateway that have no labels.
func scrape(ctx context.Context, url string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	values := make(map[string]float64)
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		name, text, ok := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(text, 64); ok && err == nil {
			values[name] = v
		}
	}
	return values, lines.Err()
}

// partSpread counts commits and checkpoints as partitions a flush grow.
func partSpread(ctx context.Context, a *app, o *allOptions) (any, []figure, error) {
	co := countsOptions{dir: o.dir, spreads: []int32{1, 100, 10_000}, requests: 400, full: 256 * mib}
	if o.quick {
		co.spreads, co.requests, co.full = []int32{1, 100}, 50, 0
	}
	r, err := a.countSome(ctx, &co, (*app).countSpread)
	if err != nil {
		return nil, nil, err
	}
	var figures []figure
	for _, s := range r.Spread {
		name := fmt.Sprintf("%s partitions a request", thousands(int64(s.Partitions)))
		figures = append(figures,
			// Entries of a commit that do not fit one row are split: with 10,000 spans some are.
			atMost(name+": commit writes", s.Commits, pickBound(s.Partitions > 1000, 2, 1), "a cycle"),
			told(name+": commits", s.Costs.BytesPerSpan, "bytes a span"),
			atMost(name+": write units of checkpoints", s.CheckpointShare, 1, "a unit of commits"),
			told(name+": bytes of checkpoints", ratio(s.Costs.CheckpointBytes, s.Costs.CommitBytes), "a byte of commits"))
		if s.Full != nil {
			figures = append(figures, atMost(name+": PUTs as fast as it goes", s.Full.PutsPerGiB, 140, "a GiB of batches"))
		}
	}
	return r.Spread, figures, nil
}

func pickBound(b bool, yes, no float64) float64 {
	if b {
		return yes
	}
	return no
}

func ratio(a, b uint64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// partIdle appends a little, and then waits.
func partIdle(ctx context.Context, a *app, o *allOptions) (any, []figure, error) {
	co := countsOptions{dir: o.dir, producers: 8, keep: true, sharing: pickSize(o, time.Second, 50*time.Millisecond), idle: pickSize(o, time.Minute, 300*time.Millisecond)}
	r, err := a.countSome(ctx, &co, (*app).countShared, (*app).countIdle)
	if err != nil {
		return nil, nil, err
	}
	c := r.Idle.Costs
	return r.Idle, []figure{
		atMost("PUTs", float64(c.ObjectPuts), 0, "in an idle minute"),
		atMost("LISTs", float64(c.ObjectLists), 0, "in an idle minute"),
		atMost("GETs", float64(c.ObjectGets), 0, "in an idle minute"),
		atMost("table calls, without beats", float64(c.TableReads+c.TableWrites-c.BeatWrites), 0, "in an idle minute"),
		told("resident", float64(c.ResidentBytes)/mib, "MiB"),
	}, nil
}

// countSome runs some of the steps of bench counts on a gateway of its own.
func (a *app) countSome(ctx context.Context, o *countsOptions, steps ...func(*app, context.Context, *countsOptions, *countsReport) error) (r *countsReport, err error) {
	dir, remove, err := (&allOptions{dir: o.dir}).scratch()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	own, stop, err := a.ownGateway(ctx, dir, "", "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	r = &countsReport{Bench: "counts"}
	for _, step := range steps {
		if err := step(own, ctx, o, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}
