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

// catchupOptions are the flags of bench catchup.
type catchupOptions struct {
	consumeOptions
	readers, rounds    int
	cacheBytes         byteSize
	coldRate           int64
	segments, metadata string
	debugListen        string
}

func newBenchCatchupCommand(a *app) *cobra.Command {
	o := catchupOptions{consumeOptions: consumeOptions{messageBytes: mib, bytes: 1024 * mib, recordSize: 100}, cacheBytes: 256 * mib}
	cmd := &cobra.Command{
		Use:   "catchup",
		Short: "Measure what readers of old data do to the tail",
		Long: `Start a gateway, fill a topic, and follow another one while records arrive at a rate: in turns with nobody
else, and with readers that go through the full topic over and over. The time from the call of produce to the arrival
at each follower is compared: the ratio is the median over the rounds of the ratios within one, whose two turns follow
each other, one side first in one round and the other in the next. Many short rounds have whatever else the machine does
touch both sides, and no one round decides. The arrivals of all rounds together are told too.

Producers must be enough to keep up the rate while each of their records waits for its flush and its commit.

The gateway's cache, of the default size, has a quarter of the old data: the rest comes from the bucket.`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.rounds < 1 || o.readers < 1 || o.readers > maxSenders {
				return usagef("want at least one round and 1 to %d readers", maxSenders)
			}
			o.consumers = 1
			if err := o.check(); err != nil {
				return err
			}
			r, err := a.benchCatchup(cmd.Context(), &o)
			if err != nil {
				return err
			}
			return a.print(r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.segments, "segments", "", "the bucket of the gateway (default: files)")
	f.StringVar(&o.metadata, "metadata", "", "the table of the gateway (default: a file)")
	f.Var(&o.cacheBytes, "cache-bytes", "memory of the gateway for what it read from the bucket")
	f.Int64Var(&o.coldRate, "cold-rate", -1, "bytes a second that readers of old data get, 0: no limit (default: the gateway's default)")
	f.Var(&o.bytes, "bytes", "how much old data there is")
	f.IntVar(&o.readers, "readers", 1, "readers of old data at once")
	f.IntVar(&o.rounds, "rounds", 16, "how often both are measured")
	f.Int32Var(&o.partitions, "partitions", 8, "partitions of both topics")
	f.IntVar(&o.followers, "followers", 4, "followers of all partitions")
	f.IntVar(&o.producers, "producers", 128, "producers at once")
	f.Float64Var(&o.rate, "rate", 200, "records a second, each a request of its own")
	f.Var(&o.recordSize, "record-size", "bytes of a record's value, at least 8")
	f.StringVar(&o.acks, "acks", "committed", "committed or buffered")
	f.DurationVar(&o.duration, "duration", 4*time.Second, "how long each measurement takes")
	f.StringVar(&o.debugListen, "debug-listen", "", "loopback address for /debug/pprof of the gateway (default: none)")
	return cmd
}

// catchupRound is the tail alone, and with readers of old data.
type catchupRound struct {
	Alone  *tailReport `json:"alone"`
	Beside *tailReport `json:"beside"`
	Old    measured    `json:"old_data"`
}

// p99 is that beside readers, divided by that alone.
func (r *catchupRound) p99() float64 { return quotient(r.Beside.Arrival.P99, r.Alone.Arrival.P99) }

func (r *catchupRound) p50() float64 { return quotient(r.Beside.Arrival.P50, r.Alone.Arrival.P50) }

// quotient is 0 where there is nothing to divide by.
func quotient(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// catchupReport is what `varve bench catchup` prints.
type catchupReport struct {
	Bench   string         `json:"bench"`
	Readers int            `json:"readers"`
	Rounds  []catchupRound `json:"rounds"`
	// Medians over the rounds: of the quantiles, and of their ratios.
	AloneP99  float64 `json:"alone_p99_ms"`
	BesideP99 float64 `json:"beside_p99_ms"`
	P50       float64 `json:"p50_ratio"`
	P99       float64 `json:"p99_ratio"`
	// Arrivals of all rounds together.
	Alone     quantiles `json:"alone"`
	Beside    quantiles `json:"beside"`
	PooledP99 float64   `json:"pooled_p99_ratio"`
	Missing   int64     `json:"missing"`
	Rate      float64   `json:"records_per_second"` // the least of all turns
}

func (r *catchupReport) median(of func(*catchupRound) float64) float64 { return medianOf(r.Rounds, of) }

// conclude takes the medians over the rounds. The 99th percentile of a turn of some seconds is that of the slowest one or two of
// its flushes, and that of all turns together is what the two or three worst moments of the machine made it: the median over many pairs
// of turns is steadier than either.
func (r *catchupReport) conclude() {
	alone, beside := newLatencies(), newLatencies()
	for i := range r.Rounds {
		c := &r.Rounds[i]
		alone.pool(c.Alone.arrivals)
		beside.pool(c.Beside.arrivals)
		r.Missing += c.Alone.Missing + c.Beside.Missing
		if rate := min(c.Alone.reached(), c.Beside.reached()); i == 0 || rate < r.Rate {
			r.Rate = rate
		}
	}
	r.Alone, r.Beside = alone.quantiles(), beside.quantiles()
	r.PooledP99 = quotient(r.Beside.P99, r.Alone.P99)
	r.AloneP99 = r.median(func(c *catchupRound) float64 { return c.Alone.Arrival.P99 })
	r.BesideP99 = r.median(func(c *catchupRound) float64 { return c.Beside.Arrival.P99 })
	r.P50, r.P99 = r.median((*catchupRound).p50), r.median((*catchupRound).p99)
}

func (r *catchupReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "catchup: %d readers of old data beside followers; %d rounds\n", r.Readers, len(r.Rounds))
	fmt.Fprintf(&b, "  %-28s p99 %.1f ms alone, %.1f beside: p50 %.2f x   p99 %.2f x\n", "medians over the rounds", r.AloneP99, r.BesideP99, r.P50, r.P99)
	fmt.Fprintf(&b, "  %-28s alone arrival %s\n  %-28s beside arrival %s: p99 %.2f x\n", "all arrivals together", r.Alone, "", r.Beside, r.PooledP99)
	fmt.Fprintf(&b, "  %-28s %.1f MiB/s, beside %.0f records/s at least\n", "old data", r.median(func(c *catchupRound) float64 { return c.Old.MiB }), r.Rate)
	return b.String()
}

// partCatchup is bench catchup with its defaults.
func partCatchup(ctx context.Context, a *app, o *allOptions) (any, []figure, error) {
	c := catchupOptions{readers: 1, rounds: pickSize(o, 16, 1), cacheBytes: pickSize[byteSize](o, 256*mib, 16*mib), coldRate: -1, segments: o.segments, metadata: o.metadata}
	c.consumeOptions = consumeOptions{consumers: 1, messageBytes: mib, bytes: pickSize[byteSize](o, 1024*mib, 16*mib), partitions: 8, followers: 4, producers: 128,
		rate: 200, recordSize: 100, acks: "committed", duration: pickSize(o, 4*time.Second, 500*time.Millisecond)}
	r, err := a.benchCatchup(ctx, &c)
	if err != nil {
		return nil, nil, err
	}
	return r, []figure{
		atMost("arrival at followers beside a reader of old data, p99", r.P99, 1.1, "x alone"),
		told("the same, p50", r.P50, "x alone"),
		told("the same, p99 of all arrivals together", r.PooledP99, "x alone"),
		told("arrival p99 alone", r.AloneP99, "ms"),
		told("arrival p99 beside", r.BesideP99, "ms"),
		told("old data", r.median(func(c *catchupRound) float64 { return c.Old.MiB }), "MiB/s"),
		atLeast("records", r.Rate, pickSize(o, 0.9, 0)*c.rate, "a second"),
		atMost("records that did not arrive", float64(r.Missing), 0, ""),
	}, nil
}

func (a *app) benchCatchup(ctx context.Context, o *catchupOptions) (r *catchupReport, err error) {
	more := []string{"--cache-bytes", strconv.FormatInt(int64(o.cacheBytes), 10)}
	if o.coldRate >= 0 {
		more = append(more, "--cold-rate", strconv.FormatInt(o.coldRate, 10))
	}
	if o.debugListen != "" {
		more = append(more, "--debug-listen", o.debugListen)
	}
	own, err := a.openOwn(ctx, "", o.segments, o.metadata, more...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, own.close()) }()
	old, err := own.filled(ctx, o.partitions, o.bytes)
	defer own.remove(ctx, old)
	if err != nil {
		return nil, err
	}
	tail, err := openTopic(ctx, own.client, "", o.partitions)
	defer own.remove(ctx, tail)
	if err != nil {
		return nil, err
	}
	// Once to warm up: connections, pools, the partitions' first appends.
	warm := o.consumeOptions
	warm.duration = min(o.duration, time.Second)
	if _, err := own.benchTail(ctx, own.client, tail, &warm); err != nil {
		return nil, err
	}
	r = &catchupReport{Bench: "catchup", Readers: o.readers}
	for i := range o.rounds {
		round, err := own.catchupRound(ctx, old, tail, o, i%2 == 1)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return nil, err
		}
		a.notef("round %d of %d: p99 %.1f ms alone, %.1f ms beside: %.2f x", i+1, o.rounds, round.Alone.Arrival.P99, round.Beside.Arrival.P99, round.p99())
		r.Rounds = append(r.Rounds, round)
	}
	r.conclude()
	return r, nil
}

// catchupRound measures the tail alone and beside readers, or the other way round, so that what changes from one to the next
// is on no side.
func (b *ownBench) catchupRound(ctx context.Context, old, tail benchTopic, o *catchupOptions, besideFirst bool) (r catchupRound, err error) {
	alone := func() (err error) {
		r.Alone, err = b.benchTail(ctx, b.client, tail, &o.consumeOptions)
		return err
	}
	beside := func() error { return b.besideReaders(ctx, old, tail, o, &r) }
	turns := []func() error{alone, beside}
	if besideFirst {
		slices.Reverse(turns)
	}
	for _, turn := range turns {
		if err := turn(); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (b *ownBench) besideReaders(ctx context.Context, old, tail benchTopic, o *catchupOptions, r *catchupRound) (err error) {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	w := b.newWire(b.servers[0], o.readers)
	defer w.close()
	var bytes atomic.Int64
	group, reading := errgroup.WithContext(reading)
	began := time.Now()
	for range o.readers {
		group.Go(func() error { return w.drainOver(reading, wholeTopic(old, 0, 1, int(o.messageBytes)), &bytes) })
	}
	r.Beside, err = b.benchTail(ctx, b.client, tail, &o.consumeOptions)
	stop()
	err = errors.Join(err, group.Wait())
	r.Old = newMeasured(bytes.Load(), time.Since(began), 0, 0)
	return err
}
