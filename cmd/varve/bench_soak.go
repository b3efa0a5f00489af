package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/client"
)

// soakOptions are the flags of bench soak.
type soakOptions struct {
	dir, segments, metadata string
	duration                time.Duration
	rate                    float64
	followers               int
}

func newBenchSoakCommand(a *app) *cobra.Command {
	var o soakOptions
	cmd := &cobra.Command{
		Use:   "soak",
		Short: "Keep a gateway under a steady load, and see that nothing of it grows",
		Long: `Start a gateway, append to 32 partitions at a steady rate, follow them, ask for times, create and delete topics, write the same keys
again and again to one that is compacted by key, trim half of the partitions, and leave the others to a retention of a twentieth of the run, all the while. Small
segments are merged, and garbage is collected, thirty times. Sixty times in the run, count what there is: memory, heap,
goroutines, open files, rows of the journal and of the table by what they are for, objects in the bucket and their bytes. A line is fitted through the second half of
each. It fails, with status 1, when one rises over that half by more than its limit: what there is leaks then, or is not cleaned up. In less than an hour
checkpoints come sooner than they do else, in proportion, so that a journal is trimmed as often in a short run.`,
		Example: `  varve bench soak --duration 1h
  varve bench soak --duration 2m --segments 's3://bucket?region=…' --metadata 'dynamodb://table?region=…'`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.duration < time.Second || o.rate <= 0 || o.followers < 0 {
				return usagef("want a --duration of at least 1s and a --rate above 0")
			}
			r, err := a.benchSoak(cmd.Context(), &o)
			if r != nil {
				err = errors.Join(err, a.print(r))
			}
			if err == nil {
				err = r.grown()
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "folder for temporary data (default: the system's)")
	f.StringVar(&o.segments, "segments", "", "bucket of the gateway (default: a folder)")
	f.StringVar(&o.metadata, "metadata", "", "table of the gateway, empty (default: a file)")
	f.DurationVar(&o.duration, "duration", time.Hour, "how long")
	f.Float64Var(&o.rate, "rate", 2000, "records a second, in requests of 10")
	f.IntVar(&o.followers, "followers", 20, "followers of all partitions")
	return cmd
}

// soakSamples is how often everything is counted in a run.
const soakSamples = 60

// soaked is one thing that must not grow.
type soaked struct {
	Name string `json:"name"`
	Unit string `json:"unit,omitempty"`
	// Limit is how much the fitted line may rise over the second half of the run: so much, or a share of its value in
	// the middle of it, whichever is more.
	Limit   float64   `json:"limit"`
	Share   float64   `json:"share"`
	Samples []float64 `json:"samples"`
	// Middle and Rise are of the fitted line.
	Middle float64 `json:"middle"`
	Rise   float64 `json:"rise"`
	Grows  bool    `json:"grows"`
}

// soakReport is what `varve bench soak` prints.
type soakReport struct {
	Bench   string     `json:"bench"`
	Seconds float64    `json:"seconds"`
	Times   []float64  `json:"times_seconds"`
	Things  []*soaked  `json:"things"`
	Load    loadResult `json:"load"`
	Deleted int        `json:"topics_created_and_deleted"`
	Trims   int        `json:"trims"`
	// Overtaken counts followers whose next offset was trimmed before they had read it.
	Overtaken int64 `json:"followers_overtaken"`
	// Kept are the rows of topics and of leases at the end, Removed those about topics that were deleted, which stay.
	Kept    int `json:"topic_and_lease_rows"`
	Removed int `json:"removed_topic_rows"`
	// Merged, Dropped and Collected say that the log was looked after: merged segments, records taken out by key, objects deleted.
	Merged    float64 `json:"merged_segments"`
	Dropped   float64 `json:"records_taken_out_by_key"`
	Collected float64 `json:"objects_collected"`
	Costs     costs   `json:"costs"`
	Machine   machine `json:"machine"`
	began     time.Time
	rows      func() (rowCounts, error)
	url       string
	things    map[string]*soaked
}

func newSoakReport() *soakReport {
	r := &soakReport{Bench: "soak", Machine: thisMachine(), things: make(map[string]*soaked)}
	for _, s := range []*soaked{
		// The runtime collects when the heap has doubled: what is resident swings by as much as the heap.
		{Name: "resident", Unit: "MiB", Limit: 32, Share: 0.1},
		{Name: "heap", Unit: "MiB", Limit: 16, Share: 0.2},
		{Name: "goroutines", Limit: 50, Share: 0.1},
		{Name: "open files", Limit: 32, Share: 0.1},
		// Between two trims a journal grows by as many rows as fit the bytes after which checkpoints come: it is a saw.
		{Name: "journal rows", Limit: 200, Share: 0.5},
		{Name: "index and producer rows", Limit: 200, Share: 0.1},
		{Name: "other rows", Limit: 10, Share: 0.1},
		// Between two collections they grow by what was merged or removed meanwhile.
		{Name: "objects", Limit: 200, Share: 0.5},
		{Name: "bucket", Unit: "MiB", Limit: 32, Share: 0.5},
	} {
		r.things[s.Name] = s
		r.Things = append(r.Things, s)
	}
	return r
}

// text implements report.
func (r *soakReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "soak: %.0f s, %.0f records/s, %d topics created and deleted, which leaves %d rows of topics and leases and %d about deleted topics, %d trims, by which %d followers were overtaken; load of the machine %.1f at the beginning\n", r.Seconds, r.Load.Rate, r.Deleted, r.Kept, r.Removed, r.Trims, r.Overtaken, r.Machine.Load)
	fmt.Fprintf(&b, "  %.0f merged segments, %.0f records taken out by key, %.0f objects collected\n", r.Merged, r.Dropped, r.Collected)
	t := tabwriter.NewWriter(&b, 2, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  what\tfirst\tmiddle of the second half\tlast\trise over the second half\tmay rise\t")
	for _, s := range r.Things {
		if len(s.Samples) == 0 {
			continue
		}
		verdict := "steady"
		if s.Grows {
			verdict = "GROWS"
		}
		fmt.Fprintf(t, "  %s\t%.1f\t%.1f\t%.1f %s\t%+.1f\t%.1f\t%s\n", s.Name, s.Samples[0], s.Middle, s.Samples[len(s.Samples)-1], s.Unit, s.Rise, s.allowed(), verdict)
	}
	// It writes to memory.
	_ = t.Flush()
	return b.String() + "  ack         " + r.Load.Ack.String() + "\n" + r.Costs.text()
}

func (s *soaked) allowed() float64 { return max(s.Limit, s.Share*s.Middle) }

// conclude fits a line through the second half of the samples, by least squares.
func (s *soaked) conclude(times []float64) {
	from := len(s.Samples) / 2
	x, y := times[from:len(s.Samples)], s.Samples[from:]
	if len(x) < 2 {
		return
	}
	var meanX, meanY, xx, xy float64
	for i := range x {
		meanX += x[i] / float64(len(x))
		meanY += y[i] / float64(len(x))
	}
	for i := range x {
		xx += (x[i] - meanX) * (x[i] - meanX)
		xy += (x[i] - meanX) * (y[i] - meanY)
	}
	s.Middle = meanY
	if xx > 0 {
		s.Rise = xy / xx * (x[len(x)-1] - x[0])
	}
	s.Grows = s.Rise > s.allowed()
}

// grown is an error that names what grew.
func (r *soakReport) grown() error {
	var names []string
	for _, s := range r.Things {
		if s.Grows {
			names = append(names, fmt.Sprintf("%s by %.1f %s", s.Name, s.Rise, s.Unit))
		}
	}
	if len(names) > 0 {
		return fmt.Errorf("it grew in the second half: %s", strings.Join(names, ", "))
	}
	// A run of seconds is over before anything is old enough.
	if r.Seconds >= 120 && min(r.Merged, r.Dropped, r.Collected) == 0 {
		return fmt.Errorf("%.0f segments were merged, %.0f records taken out by key, %.0f objects collected: the run shows nothing", r.Merged, r.Dropped, r.Collected)
	}
	return nil
}

func (a *app) benchSoak(ctx context.Context, o *soakOptions) (r *soakReport, err error) {
	dir, err := os.MkdirTemp(o.dir, "varve-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// What 4 MiB of journal entries, the default, are to an hour.
	fold := byteSize(min(4*mib, max(16*kib, 4*mib*o.duration.Hours())))
	args := append([]string{"--data", dir, "--fold-bytes", fold.String()}, o.upkeep()...)
	if o.segments != "" {
		place, err := ownPrefix(o.segments)
		if err != nil {
			return nil, err
		}
		args = append(args, "--segments", place, "--metadata", o.metadata)
		defer func() { err = errors.Join(err, emptyBucket(context.WithoutCancel(ctx), place)) }()
	}
	child, url, err := startGatewayBy(ctx, nil, []string{"bench", "gateway"}, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, child.stop()) }()
	own := *a
	own.servers = []string{url}
	r = newSoakReport()
	r.url, r.rows = url, child.rows
	return r, own.soak(ctx, o, r)
}

// upkeep has segments merged and garbage collected thirty times in the run.
func (o *soakOptions) upkeep() []string {
	pace := max(o.duration/30, time.Second).String()
	return []string{"--merge-age", pace, "--gc-interval", pace, "--gc-grace", max(o.duration/60, 100*time.Millisecond).String()}
}

// retained is for how long records of the run are kept.
func (o *soakOptions) retained() time.Duration { return max(o.duration/20, time.Second) }

// openSoakTopic makes the topic of the load, a twentieth of the run long.
func openSoakTopic(ctx context.Context, c *client.Client, o *soakOptions) (benchTopic, error) {
	topic, err := openTopic(ctx, c, "", 32)
	if err != nil {
		return topic, err
	}
	_, err = c.AlterTopic(ctx, topic.name, client.AlterTopicOptions{Set: map[string]string{"retention.ms": fmt.Sprint(o.retained().Milliseconds())}})
	return topic, err
}

// soak runs the load and counts beside it.
func (a *app) soak(ctx context.Context, o *soakOptions, r *soakReport) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	topic, err := openSoakTopic(ctx, c, o)
	if err != nil {
		return err
	}
	w := a.newWire(a.servers[0], 16+o.followers)
	defer w.close()
	lo := loadOptions{recordSize: 200, batchRecords: 10, producers: 16, inFlight: 1, rate: o.rate, acks: "committed", codec: "none", idempotent: true}
	l, err := lo.load(topic)
	if err != nil {
		return err
	}
	l.send, l.idempotent = w.produce, w.initProducer
	if err := l.prepare(ctx); err != nil {
		return err
	}
	// All of the load's connections are made at first, lest they are taken for something that grows.
	l.rate = 0
	if _, err := l.run(ctx, limit{duration: min(time.Second, o.duration/10)}); err != nil {
		return err
	}
	l.rate = o.rate
	m, err := startMeter(ctx, c)
	if err != nil {
		return err
	}
	r.began = time.Now()
	running, stop := context.WithCancel(ctx)
	defer stop()
	group, running := errgroup.WithContext(running)
	group.Go(func() error { return r.watch(running, o.duration/soakSamples) })
	group.Go(func() error { return r.trim(running, c, topic, o.retained()/2) })
	group.Go(func() error { return rewrite(running, c, o.duration/soakSamples, o.retained()) })
	group.Go(func() error { return r.churn(running, c, min(time.Second, o.duration/soakSamples)) })
	var overtaken atomic.Int64
	for i := range o.followers {
		group.Go(func() error { return w.followForWhile(running, topic, i, o.duration/10, &overtaken) })
	}
	group.Go(func() (err error) {
		defer stop()
		r.Load, err = l.run(running, limit{duration: o.duration})
		return err
	})
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	r.Seconds, r.Overtaken = time.Since(r.began).Seconds(), overtaken.Load()
	for _, s := range r.Things {
		s.conclude(r.Times)
	}
	r.Costs, err = m.stop(ctx, r.Load.Bytes)
	return err
}

// every calls f so often until ctx ends.
func every(ctx context.Context, d time.Duration, f func() error) error {
	ticker := time.NewTicker(max(d, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := f(); err != nil && ctx.Err() == nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// watch counts what the gateway has.
func (r *soakReport) watch(ctx context.Context, often time.Duration) error {
	return every(ctx, often, func() error {
		v, err := scrape(ctx, r.url)
		if err != nil {
			return err
		}
		rows, err := r.rows()
		if err != nil {
			return err
		}
		r.Times = append(r.Times, time.Since(r.began).Seconds())
		r.Kept, r.Removed = rows.Topics+rows.Leases, rows.Removed
		r.Merged, r.Dropped, r.Collected = v["varve_compaction_objects_total"], v["varve_compaction_key_records_dropped_total"], v["varve_collected_objects_total"]
		for name, n := range map[string]float64{
			"resident": v["process_resident_memory_bytes"] / mib, "heap": v["go_memstats_heap_alloc_bytes"] / mib, "goroutines": v["go_goroutines"],
			"open files": v["process_open_fds"], "journal rows": float64(rows.Journal), "index and producer rows": float64(rows.Index), "other rows": float64(rows.Others),
			"objects": float64(rows.Objects), "bucket": float64(rows.Bytes) / mib,
		} {
			r.things[name].Samples = append(r.things[name].Samples, n)
		}
		return nil
	})
}

// trim removes from every other partition what was there when it was called last. The others are retention's.
func (r *soakReport) trim(ctx context.Context, c *client.Client, t benchTopic, often time.Duration) error {
	var ends []client.PartitionOffset
	return every(ctx, often, func() error {
		for _, p := range ends {
			if p.Partition%2 == 1 {
				continue
			}
			if _, err := c.TrimTopic(ctx, t.name, client.At(p.EndOffset), p.Partition); err != nil {
				return fmt.Errorf("trim to %d, which was the end: %w", p.EndOffset, err)
			}
			r.Trims++
		}
		var err error
		ends, err = c.ListOffsets(ctx, t.name, client.LatestOffset())
		return err
	})
}

// rewrite writes the same keys again and again to a topic that is compacted by key.
func rewrite(ctx context.Context, c *client.Client, often, tombstones time.Duration) error {
	topic, err := openTopic(ctx, c, "", 1)
	if err != nil {
		return err
	}
	_, err = c.AlterTopic(ctx, topic.name, client.AlterTopicOptions{Set: map[string]string{
		"cleanup.policy": "compact", "delete.retention.ms": fmt.Sprint(tombstones.Milliseconds())}})
	if err != nil {
		return err
	}
	const keys, size = 64, 4 << 10 // 256 KiB at a time: a pass by key begins for a MiB
	value := []byte(strings.Repeat("soaked", size/6))
	return every(ctx, often, func() error {
		var records []client.Record
		for key := range keys {
			records = append(records, client.Record{Key: fmt.Append(nil, key), Value: value})
		}
		_, err := c.Append(ctx, topic.name, 0, records, client.AppendOptions{})
		return err
	})
}

// churn has a topic come, take a record, be asked for a time, and go.
func (r *soakReport) churn(ctx context.Context, c *client.Client, often time.Duration) error {
	return every(ctx, often, func() error {
		topic, err := openTopic(ctx, c, "", 4)
		if err != nil {
			return err
		}
		now := time.Now()
		if _, err := c.Append(ctx, topic.name, 0, []client.Record{{Value: []byte("soaked")}}, client.AppendOptions{}); err != nil {
			return err
		}
		if _, err := c.ListOffsets(ctx, topic.name, client.OffsetAtOrAfter(now)); err != nil {
			return err
		}
		r.Deleted++
		return c.DeleteTopic(ctx, topic.name, false)
	})
}

// overtook says that err refuses an offset that has been trimmed.
func overtook(err error) bool {
	var no *refusal
	return errors.As(err, &no) && no.Code == "out_of_range"
}

// followForWhile follows a partition from its start for a while, then another one, and so on. On a busy machine a follower
// may be overtaken by a trim before it has read what went: it begins again, and overtaken counts it.
func (w *wire) followForWhile(ctx context.Context, t benchTopic, first int, while time.Duration, overtaken *atomic.Int64) error {
	for n := int32(first); ctx.Err() == nil; n++ {
		following, stop := context.WithTimeout(ctx, while)
		err := w.swallow(following, t.name, n%t.partitions, new(atomic.Int64))
		for following.Err() == nil && overtook(err) {
			overtaken.Add(1)
			err = w.swallow(following, t.name, n%t.partitions, new(atomic.Int64))
		}
		ended := following.Err() != nil
		stop()
		if !ended {
			return err
		}
	}
	return nil
}
