package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// coldOptions are the flags of bench cold.
type coldOptions struct {
	segments, metadata, dir string
	bytes, cacheBytes       byteSize
	partitions              int32
	readers, rounds         int
	// fanReaders is how many read one partition of fanBytes at once, before all else.
	fanReaders  int
	fanBytes    byteSize
	duration    time.Duration
	debugListen string
}

func newBenchColdCommand(a *app) *cobra.Command {
	o := coldOptions{bytes: 1024 * mib, cacheBytes: 256 * mib, fanBytes: 48 * mib}
	cmd := &cobra.Command{
		Use:   "cold",
		Short: "Measure reads that come from the bucket, beside the floor",
		Long: `Start a gateway whose cache is too small for what is read, fill a topic, and read it from its start over and over,
in turns with the floor: the bare server that sends a file (pread and write), plus the cheapest bare S3 client that gets
objects of 8 MiB, for the share that came from the bucket. The ratio is the median over the rounds of ratios within one.

Before that, many readers of one partition that is not in memory begin at once: what that costs the bucket is counted.`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.rounds < 1 || o.readers < 1 || o.readers > maxSenders || o.fanReaders < 1 || o.fanReaders > maxSenders || o.segments == "" {
				return usagef("want a bucket (--segments), at least one round and 1 to %d readers", maxSenders)
			}
			r, err := a.benchCold(cmd.Context(), &o)
			if err != nil {
				return err
			}
			return a.print(r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.segments, "segments", "", "the bucket of the gateway")
	f.StringVar(&o.metadata, "metadata", "", "the table of the gateway (default: a file)")
	f.StringVar(&o.dir, "dir", "", "folder for temporary data (default: the system's)")
	f.Var(&o.bytes, "bytes", "how much is read in one pass")
	f.Var(&o.cacheBytes, "cache-bytes", "memory of the gateway for what it read from the bucket")
	f.Int32Var(&o.partitions, "partitions", 8, "partitions of the topic")
	f.IntVar(&o.readers, "consumers", 2, "readers at once, that share the partitions")
	f.IntVar(&o.fanReaders, "fan-readers", 100, "readers of one partition at once, before that")
	f.Var(&o.fanBytes, "fan-bytes", "how much each of those reads")
	f.IntVar(&o.rounds, "rounds", 5, "how often everything is measured")
	f.DurationVar(&o.duration, "duration", time.Second, "how long each measurement takes, at least")
	f.StringVar(&o.debugListen, "debug-listen", "", "loopback address for /debug/pprof of the gateway (default: none)")
	return cmd
}

// coldRound is everything measured once.
type coldRound struct {
	Pread   measured        `json:"floor_pread"`
	Objects []objectsResult `json:"floor_objects"`
	Consume measured        `json:"consume"`
	Costs   costs           `json:"costs"`
	// FromBucket is the share of the bytes that came from the bucket; more than 1 if some were read twice.
	FromBucket float64 `json:"from_bucket"`
	Floor      float64 `json:"floor_cpu_seconds_per_gib"`
	CPU        float64 `json:"cpu_ratio"`
}

func (r *coldRound) conclude() {
	floor := floorReport{Objects: r.Objects}
	cheapest, _, _ := floor.bare(opGet)
	r.FromBucket = float64(r.Costs.ObjectGetBytes) / float64(max(1, r.Consume.Bytes))
	r.Floor = r.Pread.ServerCPU + min(r.FromBucket, 1)*cheapest
	if r.Floor > 0 {
		r.CPU = r.Consume.ServerCPU / r.Floor
	}
}

// coldReport is what `varve bench cold` prints.
type coldReport struct {
	Bench      string      `json:"bench"`
	FanOut     fanResult   `json:"fan_out"`
	Rounds     []coldRound `json:"rounds"`
	CPU        float64     `json:"cpu_ratio"`
	FromBucket float64     `json:"from_bucket"`
}

func (r *coldReport) median(of func(*coldRound) float64) float64 { return medianOf(r.Rounds, of) }

func (r *coldReport) conclude() {
	r.CPU = r.median(func(c *coldRound) float64 { return c.CPU })
	r.FromBucket = r.median(func(c *coldRound) float64 { return c.FromBucket })
}

func (r *coldReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cold: reads of a bucket; medians of %d rounds\n", len(r.Rounds))
	line := func(name string, of func(*coldRound) *measured) {
		fmt.Fprintf(&b, "  %-28s %8.1f MiB/s   server %.2f s/GiB\n", name,
			r.median(func(c *coldRound) float64 { return of(c).MiB }),
			r.median(func(c *coldRound) float64 { return of(c).ServerCPU }))
	}
	line("floor: pread", func(c *coldRound) *measured { return &c.Pread })
	if len(r.Rounds) > 0 {
		for i, o := range r.Rounds[0].Objects {
			o.MiB = r.median(func(c *coldRound) float64 { return c.Objects[i].MiB })
			o.CPU = r.median(func(c *coldRound) float64 { return c.Objects[i].CPU })
			b.WriteString(o.text())
		}
	}
	line("varve", func(c *coldRound) *measured { return &c.Consume })
	fmt.Fprintf(&b, "  %-28s %.0f %% of the bytes, %.0f GETs a GiB, %s resident at its peak\n", "from the bucket", 100*r.FromBucket, r.gets(), sizeText(r.peak()))
	fmt.Fprintf(&b, "  %-28s %.2f x pread and the cheapest get\n", "server CPU", r.CPU)
	fmt.Fprintf(&b, "  %-28s %d of %s: each byte came from the bucket %.2f times, with %d GETs\n", "readers of one partition", r.FanOut.Readers, sizeText(uint64(r.FanOut.Bytes)),
		r.FanOut.Reads, r.FanOut.Costs.ObjectGets)
	return b.String()
}

// gets is how many GETs a GiB there were.
func (r *coldReport) gets() float64 {
	return r.median(func(c *coldRound) float64 {
		return float64(c.Costs.ObjectGets) / float64(max(1, c.Consume.Bytes)) * gib
	})
}

func (r *coldReport) peak() (most uint64) {
	for i := range r.Rounds {
		most = max(most, r.Rounds[i].Costs.PeakResidentBytes)
	}
	return most
}

func (a *app) benchCold(ctx context.Context, o *coldOptions) (r *coldReport, err error) {
	// Merging would be work of the same process that nobody reads for.
	more := []string{"--role", "gateway", "--cache-bytes", strconv.FormatInt(int64(o.cacheBytes), 10)}
	if o.debugListen != "" {
		more = append(more, "--debug-listen", o.debugListen)
	}
	own, err := a.openOwn(ctx, o.dir, o.segments, o.metadata, more...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, own.close()) }()
	r = &coldReport{Bench: "cold"}
	fan, err := own.filled(ctx, 1, o.fanBytes)
	defer own.remove(ctx, fan)
	if err != nil {
		return nil, err
	}
	topic, err := own.filled(ctx, o.partitions, o.bytes) // and the other one is in memory no more
	defer own.remove(ctx, topic)
	if err != nil {
		return nil, err
	}
	if r.FanOut, err = own.fanOut(ctx, fan, o.fanReaders); err != nil {
		return nil, err
	}
	floor, err := a.startFloor(own.dir, o.readers)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, floor.stop()) }()
	size := int64(min(o.bytes, 256*mib))
	if err := floor.fill(ctx, batchShape{recordSize: kib, records: 1000, step: 1}, size); err != nil {
		return nil, err
	}
	for i := range o.rounds {
		var round coldRound
		if round.Pread, err = floor.consume(ctx, "/pread", o.readers, size, o.duration); err == nil {
			round.Consume, round.Costs, err = own.readOver(ctx, own.client, topic, o.readers, o.duration)
		}
		if err == nil {
			round.Objects, err = bareGets(ctx, o.segments, o.duration)
		}
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return nil, err
		}
		round.conclude()
		a.notef("round %d of %d: %.2f s/GiB, %.2f x the floor, %.0f %% from the bucket", i+1, o.rounds, round.Consume.ServerCPU, round.CPU, 100*round.FromBucket)
		r.Rounds = append(r.Rounds, round)
	}
	r.conclude()
	return r, nil
}

// fanResult is what many readers of one partition, whose data was not in memory, cost the bucket.
type fanResult struct {
	Readers int   `json:"readers"`
	Bytes   int64 `json:"bytes"` // of the partition
	Read    int64 `json:"bytes_read"`
	Costs   costs `json:"costs"`
	// Reads is how often each byte came from the bucket.
	Reads float64 `json:"reads_of_the_bucket"`
}

// fanOut has many readers begin at the start of one partition at the same time.
func (b *ownBench) fanOut(ctx context.Context, t benchTopic, readers int) (r fanResult, err error) {
	r.Readers = readers
	w := b.newWire(b.servers[0], readers)
	defer w.close()
	m, err := startMeter(ctx, b.client)
	if err != nil {
		return r, err
	}
	var read atomic.Int64
	group, reading := errgroup.WithContext(ctx)
	for range readers {
		group.Go(func() error {
			var records atomic.Int64
			return w.drain(reading, wholeTopic(t, 0, 1, mib), false, &read, &records)
		})
	}
	if err := group.Wait(); err != nil {
		return r, err
	}
	r.Read, r.Bytes = read.Load(), read.Load()/int64(readers)
	if r.Costs, err = m.stop(ctx, r.Read); err == nil {
		r.Reads = float64(r.Costs.ObjectGetBytes) / float64(max(1, r.Bytes))
	}
	return r, err
}

// bareGets measures both SDKs with few and with many callers.
func bareGets(ctx context.Context, place string, duration time.Duration) (all []objectsResult, err error) {
	for _, sdk := range []string{sdkAWS, sdkMinIO} {
		for _, callers := range []int{4, 16} {
			r, err := floorObjects(ctx, opGet, sdk, place, callers, duration)
			if err != nil {
				return nil, err
			}
			all = append(all, r)
		}
	}
	return all, nil
}

// medianOf is the median of one number of each round; 0 without any.
func medianOf[T any](rounds []T, of func(*T) float64) float64 {
	values := make([]float64, len(rounds))
	for i := range rounds {
		values[i] = of(&rounds[i])
	}
	slices.Sort(values)
	n := len(values)
	if n == 0 {
		return 0
	}
	return (values[(n-1)/2] + values[n/2]) / 2
}

// partCold is bench cold, with readers that go through all of a topic: four times what the cache has, which is a gateway's default.
func partCold(ctx context.Context, a *app, o *allOptions) (any, []figure, error) {
	r, err := a.benchCold(ctx, &coldOptions{segments: o.segments, metadata: o.metadata, dir: o.dir, bytes: pickSize[byteSize](o, 1024*mib, 64*mib), cacheBytes: pickSize[byteSize](o, 256*mib, 16*mib),
		partitions: 8, readers: 2, fanReaders: 100, fanBytes: pickSize[byteSize](o, 48*mib, 4*mib), rounds: pickSize(o, 5, 1), duration: pickSize(o, time.Second, 200*time.Millisecond)})
	if err != nil {
		return nil, nil, err
	}
	return r, []figure{
		atMost("consume cold from the bucket, server CPU", r.CPU, 1.3, "x pread and the cheapest bare GET"),
		atLeast("of the bytes, from the bucket", r.FromBucket, 0.7, "x"),
		told("consume cold", r.median(func(c *coldRound) float64 { return c.Consume.MiB }), "MiB/s"),
		told("consume cold, server CPU", r.median(func(c *coldRound) float64 { return c.Consume.ServerCPU }), "s/GiB"),
		told("floor of it", r.median(func(c *coldRound) float64 { return c.Floor }), "s/GiB"),
		told("GETs", r.gets(), "a GiB"),
		atMost("100 readers of one partition, from the bucket", r.FanOut.Reads, 1.02, "x its bytes"),
		told("100 readers of one partition, GETs", float64(r.FanOut.Costs.ObjectGets), fmt.Sprintf("for %.0f MiB", float64(r.FanOut.Bytes)/mib)),
	}, nil
}
