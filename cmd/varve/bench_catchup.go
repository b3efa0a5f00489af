package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/client"
)

// catchupOptions are the flags of bench catchup.
type catchupOptions struct {
	consumeOptions
	readers, rounds    int
	cacheBytes         byteSize
	coldRate           int64
	segments, metadata string
}

func newBenchCatchupCommand(a *app) *cobra.Command {
	o := catchupOptions{consumeOptions: consumeOptions{messageBytes: mib, bytes: 512 * mib, recordSize: 100}, cacheBytes: 32 * mib}
	cmd := &cobra.Command{
		Use:   "catchup",
		Short: "Measure what readers of old data do to the tail",
		Long: `Start a gateway, fill a topic, and follow another one while records arrive at a rate: in turns with nobody
else, and with readers that go through the full topic over and over. The time from the call of produce to the arrival
at each follower is compared, all arrivals of all rounds together: many short rounds have whatever else the machine does
touch both sides.

The gateway's cache is small, so that old data comes from the bucket.`,
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
	f.IntVar(&o.rounds, "rounds", 8, "how often both are measured")
	f.Int32Var(&o.partitions, "partitions", 8, "partitions of both topics")
	f.IntVar(&o.followers, "followers", 4, "followers of all partitions")
	f.IntVar(&o.producers, "producers", 8, "producers at once")
	f.Float64Var(&o.rate, "rate", 200, "records a second, each a request of its own")
	f.Var(&o.recordSize, "record-size", "bytes of a record's value, at least 8")
	f.StringVar(&o.acks, "acks", "committed", "committed or buffered")
	f.DurationVar(&o.duration, "duration", 4*time.Second, "how long each measurement takes")
	return cmd
}

// catchupRound is the tail alone, and with readers of old data.
type catchupRound struct {
	Alone  *tailReport `json:"alone"`
	Beside *tailReport `json:"beside"`
	Old    measured    `json:"old_data"`
}

// catchupReport is what `varve bench catchup` prints.
type catchupReport struct {
	Bench   string         `json:"bench"`
	Readers int            `json:"readers"`
	Rounds  []catchupRound `json:"rounds"`
	// Arrivals of all rounds together.
	Alone   quantiles `json:"alone"`
	Beside  quantiles `json:"beside"`
	Missing int64     `json:"missing"`
	P50     float64   `json:"p50_ratio"`
	P99     float64   `json:"p99_ratio"`
}

func (r *catchupReport) median(of func(*catchupRound) float64) float64 { return medianOf(r.Rounds, of) }

// conclude sets all arrivals of the turns beside readers against all of those alone: a turn of a few seconds has a few
// dozen flushes, and its own 99th percentile is that of one or two of them.
func (r *catchupReport) conclude() {
	alone, beside := newLatencies(), newLatencies()
	for i := range r.Rounds {
		alone.pool(r.Rounds[i].Alone.arrivals)
		beside.pool(r.Rounds[i].Beside.arrivals)
		r.Missing += r.Rounds[i].Alone.Missing + r.Rounds[i].Beside.Missing
	}
	r.Alone, r.Beside = alone.quantiles(), beside.quantiles()
	if r.Alone.Count > 0 {
		r.P50, r.P99 = r.Beside.P50/r.Alone.P50, r.Beside.P99/r.Alone.P99
	}
}

func (r *catchupReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "catchup: %d readers of old data beside followers; all arrivals of %d rounds\n", r.Readers, len(r.Rounds))
	fmt.Fprintf(&b, "  %-28s arrival %s\n  %-28s arrival %s\n", "the tail alone", r.Alone, "beside readers of old data", r.Beside)
	fmt.Fprintf(&b, "  %-28s p50 %.2f x   p99 %.2f x\n", "so", r.P50, r.P99)
	fmt.Fprintf(&b, "  %-28s %.1f MiB/s\n", "old data", r.median(func(c *catchupRound) float64 { return c.Old.MiB }))
	return b.String()
}

// partCatchup is bench catchup with its defaults.
func partCatchup(ctx context.Context, a *app, o *allOptions) (any, []figure, error) {
	c := catchupOptions{readers: 1, rounds: pickSize(o, 8, 1), cacheBytes: 32 * mib, coldRate: -1, segments: o.segments, metadata: o.metadata}
	c.consumeOptions = consumeOptions{consumers: 1, messageBytes: mib, bytes: pickSize[byteSize](o, 512*mib, 16*mib), partitions: 8, followers: 4, producers: 8,
		rate: 200, recordSize: 100, acks: "committed", duration: pickSize(o, 4*time.Second, 500*time.Millisecond)}
	r, err := a.benchCatchup(ctx, &c)
	if err != nil {
		return nil, nil, err
	}
	return r, []figure{
		atMost("arrival at followers beside a reader of old data, p99", r.P99, 1.1, "x alone"),
		told("the same, p50", r.P50, "x alone"),
		told("arrival p99 alone", r.Alone.P99, "ms"),
		told("old data", r.median(func(c *catchupRound) float64 { return c.Old.MiB }), "MiB/s"),
		atMost("records that did not arrive", float64(r.Missing), 0, ""),
	}, nil
}

func (a *app) benchCatchup(ctx context.Context, o *catchupOptions) (r *catchupReport, err error) {
	dir, err := os.MkdirTemp("", "varve-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	more := []string{"--cache-bytes", strconv.FormatInt(int64(o.cacheBytes), 10)}
	if o.coldRate >= 0 {
		more = append(more, "--cold-rate", strconv.FormatInt(o.coldRate, 10))
	}
	own, stop, err := a.ownGateway(ctx, dir, o.segments, o.metadata, more...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	c, err := own.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	old, err := openTopic(ctx, c, "", o.partitions)
	defer old.remove(ctx, own, c, false)
	if err != nil {
		return nil, err
	}
	if err := own.fill(ctx, old, limit{bytes: int64(o.bytes)}); err != nil {
		return nil, err
	}
	tail, err := openTopic(ctx, c, "", o.partitions)
	defer tail.remove(ctx, own, c, false)
	if err != nil {
		return nil, err
	}
	r = &catchupReport{Bench: "catchup", Readers: o.readers}
	for i := range o.rounds {
		round, err := own.catchupRound(ctx, c, old, tail, o)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return nil, err
		}
		a.notef("round %d of %d: p99 %.1f ms alone, %.1f ms beside", i+1, o.rounds, round.Alone.Arrival.P99, round.Beside.Arrival.P99)
		r.Rounds = append(r.Rounds, round)
	}
	r.conclude()
	return r, nil
}

func (a *app) catchupRound(ctx context.Context, c *client.Client, old, tail benchTopic, o *catchupOptions) (r catchupRound, err error) {
	if r.Alone, err = a.benchTail(ctx, c, tail, &o.consumeOptions); err != nil {
		return r, err
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	w := a.newWire(a.servers[0], o.readers)
	defer w.close()
	var bytes, records atomic.Int64
	group, reading := errgroup.WithContext(reading)
	began := time.Now()
	for range o.readers {
		group.Go(func() error {
			for reading.Err() == nil {
				if err := w.drain(reading, wholeTopic(old, 0, 1, int(o.messageBytes)), false, &bytes, &records); err != nil && reading.Err() == nil {
					return err
				}
			}
			return nil
		})
	}
	r.Beside, err = a.benchTail(ctx, c, tail, &o.consumeOptions)
	stop()
	err = errors.Join(err, group.Wait())
	r.Old = newMeasured(bytes.Load(), time.Since(began), 0, 0)
	return r, err
}
