package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments"
)

// newBenchCompareCommand sets a gateway beside the floor.
func newBenchCompareCommand(a *app) *cobra.Command {
	var o floorOptions
	var rounds int
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "Measure a gateway and the floor in turns, and print the ratios",
		Long: `Start a gateway and the servers of 'varve bench floor', measure them in turns, and print what the gateway
costs as a multiple of the floor: medians over the rounds of ratios within one round, so that what
else the machine does meanwhile touches both sides.

The gateway keeps its data in a temporary folder, or in the places of --segments and --metadata. Bucket and table are
used under prefixes of their own, which are emptied at the end. With a bucket the floor is the bare server plus a bare S3
client, which puts, or gets what the gateway did not have in memory: the cheapest for CPU time, the fastest for throughput.`,
		Example: `  varve bench compare
  varve bench compare --segments 's3://varve/bench?endpoint=http://127.0.0.1:9000' --metadata 'dynamodb://varve?endpoint=http://127.0.0.1:8000'`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rounds < 1 {
				return usagef("--rounds %d: want at least 1", rounds)
			}
			r, err := a.benchCompare(cmd.Context(), &o, rounds)
			if err != nil {
				return err
			}
			return a.print(r)
		},
	}
	o.register(cmd, 2*time.Second)
	cmd.Flags().StringVar(&o.metadata, "metadata", "", "the table of the gateway (default: a file)")
	cmd.Flags().Int64Var(&o.cacheBytes, "cache-bytes", -1, "memory of the gateway for what it read from the bucket (default: its own default): little of it has all reads go to the bucket, much none")
	cmd.Flags().IntVar(&rounds, "rounds", 5, "how often everything is measured")
	return cmd
}

// compareRound is everything measured once.
type compareRound struct {
	Floor          floorReport `json:"floor"`
	Produce        measured    `json:"produce"`
	ProduceAck     quantiles   `json:"produce_ack"`
	ProduceCosts   costs       `json:"produce_costs"`
	Consume        measured    `json:"consume"`
	ConsumeCosts   costs       `json:"consume_costs"`
	ProduceCPU     float64     `json:"produce_cpu_ratio"`
	ConsumeCPU     float64     `json:"consume_cpu_ratio"`
	FromBucket     float64     `json:"consume_from_bucket"`
	PutThroughput  float64     `json:"put_throughput_ratio,omitempty"`
	ServerRate     float64     `json:"produce_throughput_ratio"`
	ConsumeOfFloor float64     `json:"consume_throughput_ratio"`
}

// compareReport is what `varve bench compare` prints.
type compareReport struct {
	Bench   string         `json:"bench"`
	Load    string         `json:"load"`
	Rounds  []compareRound `json:"rounds"`
	Produce float64        `json:"produce_cpu_ratio"`
	Consume float64        `json:"consume_cpu_ratio"`
	Put     float64        `json:"put_throughput_ratio,omitempty"`
	Puts    float64        `json:"object_puts_per_gib"`
	Peak    uint64         `json:"server_peak_resident_bytes"`
}

// median of one number of each round.
func (r *compareReport) median(of func(*compareRound) float64) float64 { return medianOf(r.Rounds, of) }

func (r *compareReport) conclude() {
	r.Produce = r.median(func(c *compareRound) float64 { return c.ProduceCPU })
	r.Consume = r.median(func(c *compareRound) float64 { return c.ConsumeCPU })
	r.Put = r.median(func(c *compareRound) float64 { return c.PutThroughput })
	r.Puts = r.median(func(c *compareRound) float64 { return c.ProduceCosts.PutsPerGiB })
	for i := range r.Rounds {
		r.Peak = max(r.Peak, r.Rounds[i].ConsumeCosts.PeakResidentBytes)
	}
}

func (r *compareReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "compare: %s; medians of %d rounds\n", r.Load, len(r.Rounds))
	line := func(name string, of func(*compareRound) measured) {
		fmt.Fprintf(&b, "  %-28s %8.1f MiB/s   server %.2f s/GiB   bench %.2f s/GiB\n", name,
			r.median(func(c *compareRound) float64 { return of(c).MiB }),
			r.median(func(c *compareRound) float64 { return of(c).ServerCPU }),
			r.median(func(c *compareRound) float64 { return of(c).BenchCPU }))
	}
	line("floor, produce", func(c *compareRound) measured { return c.Floor.Produce })
	if r.median(func(c *compareRound) float64 { return c.Floor.Synced.MiB }) > 0 { // told: what Varve does for durability is in no floor
		line("floor, produce with fsync", func(c *compareRound) measured { return c.Floor.Synced })
	}
	line("varve, produce", func(c *compareRound) measured { return c.Produce })
	line("floor, consume: pread", func(c *compareRound) measured { return c.Floor.Pread })
	line("floor, consume: sendfile", func(c *compareRound) measured { return c.Floor.Sendfile })
	line("varve, consume", func(c *compareRound) measured { return c.Consume })
	if len(r.Rounds) > 0 {
		for i, o := range r.Rounds[0].Floor.Objects {
			o.MiB = r.median(func(c *compareRound) float64 { return c.Floor.Objects[i].MiB })
			o.CPU = r.median(func(c *compareRound) float64 { return c.Floor.Objects[i].CPU })
			b.WriteString(o.text())
		}
	}
	fmt.Fprintf(&b, "  %-28s %.2f x the floor\n", "produce, server CPU", r.Produce)
	fmt.Fprintf(&b, "  %-28s %.2f x the floor (pread, and the cheapest get for what came from a bucket: %.0f %%)\n", "consume, server CPU", r.Consume,
		100*r.median(func(c *compareRound) float64 { return c.FromBucket }))
	if r.Put > 0 {
		fmt.Fprintf(&b, "  %-28s %.0f %% of the fastest bare S3 client\n", "produce, throughput", r.Put*100)
	}
	fmt.Fprintf(&b, "  %-28s p50 %.1f   p99 %.1f ms\n", "ack", r.median(func(c *compareRound) float64 { return c.ProduceAck.P50 }),
		r.median(func(c *compareRound) float64 { return c.ProduceAck.P99 }))
	fmt.Fprintf(&b, "  %-28s %.0f a GiB; memory of the server at its peak %s\n", "PUTs", r.Puts, sizeText(r.Peak))
	return b.String()
}

// comparison is a gateway and a floor server that run side by side.
type comparison struct {
	app     *app // whose server is the gateway
	options *floorOptions
	floor   *floorProcess
	load    *load // on the floor
	synced  *load // the same with an fsync of each file; nil with a bucket
	client  *client.Client
	// folder is where the gateway has its segments, empty when they are in a bucket.
	folder string
	dir    string // for temporary files
}

func (a *app) benchCompare(ctx context.Context, o *floorOptions, rounds int) (r *compareReport, err error) {
	var more []string
	if o.cacheBytes >= 0 {
		more = append(more, "--cache-bytes", strconv.FormatInt(o.cacheBytes, 10))
	}
	own, err := a.openOwn(ctx, o.dir, o.segments, o.metadata, more...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, own.close()) }()
	c := &comparison{app: own.app, client: own.client, options: o, dir: own.dir}
	if o.segments == "" {
		c.folder = filepath.Join(own.dir, "segments")
	}
	if c.floor, err = a.startFloor(own.dir, o.producers*o.inFlight+o.readers); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.floor.stop()) }()
	if c.load, err = c.floor.load(ctx, &o.loadOptions, "/produce"); err != nil {
		return nil, err
	}
	if c.folder != "" {
		if c.synced, err = c.floor.load(ctx, &o.loadOptions, "/produce?fsync"); err != nil {
			return nil, err
		}
	}
	if err := c.floor.fill(ctx, c.load.shape, int64(o.readBytes)); err != nil {
		return nil, err
	}
	r = &compareReport{Bench: "compare", Load: o.String()}
	for i := range rounds {
		round, err := c.round(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return nil, err
		}
		a.notef("round %d of %d: produce %.2f x, consume %.2f x the floor's CPU", i+1, rounds, round.ProduceCPU, round.ConsumeCPU)
		r.Rounds = append(r.Rounds, round)
	}
	r.conclude()
	return r, nil
}

// ownGateway starts a gateway for a bench, and returns an app whose server it is.
func (a *app) ownGateway(ctx context.Context, dir, place, table string, more ...string) (own *app, stop func() error, err error) {
	args := append([]string{"--data", dir}, more...)
	clean := func() error { return nil }
	if place != "" {
		if place, err = ownPrefix(place); err != nil {
			return nil, nil, err
		}
		args = append(args, "--segments", place)
		clean = func() error { return emptyBucket(context.WithoutCancel(ctx), place) }
	}
	command := []string{"serve"}
	if table != "" {
		// A table that a gateway has used belongs to that one's bucket and prefix, and each run has a prefix of its own.
		command = []string{"bench", "gateway"}
		args = append(args, "--metadata", table, "--apart")
	}
	child, address, err := startGatewayBy(ctx, nil, command, args...)
	if err != nil {
		return nil, nil, errors.Join(err, clean())
	}
	copied := *a
	copied.servers = []string{address}
	return &copied, func() error { return errors.Join(child.stop(), clean()) }, nil
}

// ownPrefix adds a fresh prefix to a bucket's URL.
func ownPrefix(place string) (string, error) {
	if _, err := parseLocation("--segments", place, segmentsKeys); err != nil {
		return "", usagef("%v", err)
	}
	u, err := url.Parse(place)
	if err != nil {
		return "", err
	}
	u.Path = path.Join("/", u.Path, fmt.Sprintf("bench-%08x", rand.Uint32()))
	return u.String(), nil
}

// emptyTimeout bounds the removal of a run's objects.
const emptyTimeout = 2 * time.Minute

// emptyBucket deletes everything under the prefix of a place.
func emptyBucket(ctx context.Context, place string) error {
	ctx, cancel := context.WithTimeout(ctx, emptyTimeout)
	defer cancel()
	l, err := parseLocation("--segments", place, segmentsKeys)
	if err != nil {
		return err
	}
	store, err := openStore(ctx, l)
	if err != nil {
		return err
	}
	for after := ""; ; {
		objects, err := store.List(ctx, "", after, 1000)
		if err != nil || len(objects) == 0 {
			return err
		}
		var group errgroup.Group
		group.SetLimit(16)
		for _, object := range objects {
			group.Go(func() error { return store.Delete(ctx, object.Key) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
		after = objects[len(objects)-1].Key
	}
}

// round measures floor, gateway, floor, gateway.
func (c *comparison) round(ctx context.Context) (r compareRound, err error) {
	o := c.options
	end := limit{duration: o.duration}
	if err := c.warm(); err != nil {
		return r, err
	}
	if r.Floor.Produce, err = c.floor.produce(ctx, c.load, end); err != nil {
		return r, err
	}
	if err := c.floor.reset(ctx); err != nil {
		return r, err
	}
	if c.synced != nil {
		if err := c.warm(); err != nil {
			return r, err
		}
		if r.Floor.Synced, err = c.floor.produce(ctx, c.synced, end); err != nil {
			return r, err
		}
		if err := c.floor.reset(ctx); err != nil {
			return r, err
		}
	}
	defer func() { err = errors.Join(err, c.dropSegments()) }()
	topic, err := openTopic(ctx, c.client, "", o.partitions)
	defer topic.remove(ctx, c.app, c.client, false)
	if err != nil {
		return r, err
	}
	if err := c.warm(); err != nil {
		return r, err
	}
	produced, err := c.app.benchProduce(ctx, topic.name, &o.loadOptions, end, o.duration/10)
	if err != nil {
		return r, err
	}
	r.Produce = newMeasured(produced.Bytes, produced.elapsed, seconds(produced.Costs.ServerCPU), seconds(produced.Costs.BenchCPU))
	r.ProduceAck, r.ProduceCosts = produced.Ack, produced.Costs
	if r.Floor.Pread, err = c.floor.consume(ctx, "/pread", o.readers, int64(o.readBytes), o.duration/2); err != nil {
		return r, err
	}
	if err := c.consume(ctx, topic, &r); err != nil {
		return r, err
	}
	if r.Floor.Sendfile, err = c.floor.consume(ctx, "/sendfile", o.readers, int64(o.readBytes), o.duration/2); err != nil {
		return r, err
	}
	if o.segments != "" {
		if r.Floor.Objects, err = bareClients(ctx, c.dir, o.segments, o.duration); err != nil {
			return r, err
		}
	}
	r.ratios()
	return r, nil
}

// warm has what is measured next find the memory that the others find.
func (c *comparison) warm() error { return warmCache(c.dir, warmBytes(c.options.duration)) }

// dropSegments removes the files of a round, whose topic is deleted: the memory that the system caches
// them in goes to the next measurement, as that of the floor's files does. Pages that the
// system hands out for the first time cost several times as much.
func (c *comparison) dropSegments() error {
	if c.folder == "" {
		return nil
	}
	return filepath.WalkDir(c.folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != segments.Suffix {
			return err
		}
		return os.Remove(path)
	})
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// consume reads the topic from its start, over and over, for a while.
func (c *comparison) consume(ctx context.Context, t benchTopic, r *compareRound) error {
	var err error
	r.Consume, r.ConsumeCosts, err = c.app.readOver(ctx, c.client, t, c.options.readers, c.options.duration/2)
	return err
}

// bareClients measures both SDKs with few and with many callers. dir is where memory is made ready, beside the bucket's or not.
func bareClients(ctx context.Context, dir, place string, duration time.Duration) ([]objectsResult, error) {
	var all []objectsResult
	for _, op := range []string{opPut, opGet} {
		for _, sdk := range []string{sdkAWS, sdkMinIO} {
			for _, callers := range []int{4, 16} {
				if op == opPut {
					if err := warmCache(dir, warmBytes(duration)); err != nil {
						return nil, err
					}
				}
				r, err := floorObjects(ctx, op, sdk, place, callers, duration)
				if err != nil {
					return nil, err
				}
				all = append(all, r)
			}
		}
	}
	return all, nil
}

// bare is the least CPU time a GiB and the highest throughput of the bare clients that put, or get.
func (f *floorReport) bare(op string) (cpu, rate float64, ok bool) {
	for _, o := range f.Objects {
		if o.Op != op {
			continue
		}
		if !ok || o.CPU < cpu {
			cpu = o.CPU
		}
		rate, ok = max(rate, o.MiB), true
	}
	return cpu, rate, ok
}

// ratios sets the gateway against the floor of the same round.
func (r *compareRound) ratios() {
	ratio := func(a, b float64) float64 {
		if b == 0 {
			return 0
		}
		return a / b
	}
	produce, consume := r.Floor.Produce.ServerCPU, r.Floor.Pread.ServerCPU
	if cheapest, fastest, ok := r.Floor.bare(opPut); ok {
		produce += cheapest
		r.PutThroughput = ratio(r.Produce.MiB, fastest)
	}
	// What the gateway had in memory, nobody has to get.
	r.FromBucket = ratio(float64(r.ConsumeCosts.ObjectGetBytes), float64(r.Consume.Bytes))
	if cheapest, _, ok := r.Floor.bare(opGet); ok {
		consume += min(r.FromBucket, 1) * cheapest
	}
	r.ProduceCPU = ratio(r.Produce.ServerCPU, produce)
	r.ConsumeCPU = ratio(r.Consume.ServerCPU, consume)
	r.ServerRate = ratio(r.Produce.MiB, r.Floor.Produce.MiB)
	r.ConsumeOfFloor = ratio(r.Consume.MiB, r.Floor.Pread.MiB)
}
