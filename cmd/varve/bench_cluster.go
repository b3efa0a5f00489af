package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"weak"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/gateway"
)

// clusterOptions are the flags of bench cluster.
type clusterOptions struct {
	segments, metadata string
	delay              time.Duration
	only               []string
	flush, lease       time.Duration

	gateways   []int
	duration   time.Duration
	partitions int32
	recordSize byteSize

	samples int

	active  []int
	created []int32

	// made are all gateways of the run: those that have ended must not count as memory of others.
	made *[]weak.Pointer[gateway.Gateway]
}

// The parts of bench cluster.
const (
	partPace     = "pace"
	partHop      = "hop"
	partTakeover = "takeover"
)

// newBenchClusterCommand counts what several gateways cost each other.
func newBenchClusterCommand(a *app) *cobra.Command {
	var o clusterOptions
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Count what several gateways cost: commit writes, bytes between them, a hop, a takeover",
		Long: `Start several gateways in this process, on a bucket and a table in memory, or on those of --segments and
--metadata. They reach each other, and producers reach them, over real connections on loopback. What they
do is counted beneath them: by calls to bucket and table, and by the bytes on the wires between them.

  pace      G gateways, each with flushes at the pace of --flush-interval, each to partitions that every
            gateway sequences a share of: commit writes a second, and what crosses between gateways
  hop       lone appends in turns through the gateway that sequences the partition and through another
            one; then the same among other load
  takeover  one of three gateways is killed with so many active partitions, among more that were
            created and appended to before: how long until each of them takes appends again, and the calls
            to the table that it took, by kind; starts and memory too

Each part has a cluster of its own, under names of its own in bucket and table, and removes it.`,
		Example: `  varve bench cluster
  varve bench cluster --only takeover --active 1000 --created 4000
  varve bench cluster --segments 's3://bucket?region=…' --metadata 'dynamodb://table?region=…'`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.benchCluster(cmd.Context(), &o)
			if err != nil {
				return err
			}
			return a.print(r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.segments, "segments", "", "bucket of the gateways (default: memory)")
	f.StringVar(&o.metadata, "metadata", "", "table of the gateways (default: memory)")
	f.DurationVar(&o.delay, "delay", 5*time.Millisecond, "how long each call to bucket and table takes, when they are in memory")
	f.StringSliceVar(&o.only, "only", []string{partPace, partHop, partTakeover}, "parts to run")
	f.DurationVar(&o.flush, "flush-interval", bucketPace, "space between flushes")
	f.DurationVar(&o.lease, "lease-time", 5*time.Second, "silence after which a gateway counts as dead")
	f.IntSliceVar(&o.gateways, "gateways", []int{1, 2, 4, 8}, "pace: how many gateways")
	f.DurationVar(&o.duration, "duration", 5*time.Second, "pace and hop among load: how long")
	f.Int32Var(&o.partitions, "partitions", 64, "pace: partitions of each request")
	o.recordSize = kib
	f.Var(&o.recordSize, "record-size", "pace: bytes of a record's value")
	f.IntVar(&o.samples, "samples", 100, "hop: lone appends through each gateway")
	f.IntSliceVar(&o.active, "active", []int{250, 500, 1000}, "takeover: active partitions of the gateway that is killed")
	f.Int32SliceVar(&o.created, "created", []int32{4000, 100_000}, "takeover: partitions that were created and appended to before; the largest number of active ones is tried with each")
	completeWith(cmd, "only", partPace, partHop, partTakeover)
	return cmd
}

func (o *clusterOptions) check() error {
	for _, part := range o.only {
		if !slices.Contains([]string{partPace, partHop, partTakeover}, part) {
			return usagef("--only %q: want %s, %s or %s", part, partPace, partHop, partTakeover)
		}
	}
	switch {
	case (o.segments == "") != (o.metadata == ""):
		return usagef("give both --segments and --metadata, or neither")
	case len(o.gateways) == 0 || slices.ContainsFunc(o.gateways, func(n int) bool { return n < 1 || n > 64 }):
		return usagef("--gateways: want 1 to 64")
	case o.partitions < 1 || o.samples < 1 || o.duration <= 0 || o.recordSize < markSize:
		return usagef("want at least one partition and one sample, some time, and records of %d bytes or more", markSize)
	case len(o.active) == 0 || len(o.created) == 0 || slices.Min(o.active) < 1:
		return usagef("--active and --created: want at least one partition")
	}
	for _, l := range []struct{ flag, url string }{{"--segments", o.segments}, {"--metadata", o.metadata}} {
		keys := segmentsKeys
		if l.flag == "--metadata" {
			keys = metadataKeys
		}
		if l.url == "" {
			continue
		}
		if _, err := parseLocation(l.flag, l.url, keys); err != nil {
			return usagef("%v", err)
		}
	}
	return nil
}

// clusterReport is what `varve bench cluster` prints.
type clusterReport struct {
	Bench     string          `json:"bench"`
	Pace      []paceCount     `json:"pace,omitempty"`
	Hops      []hopCount      `json:"hops,omitempty"`
	Takeovers []takeoverCount `json:"takeovers,omitempty"`
}

func (r *clusterReport) text() string {
	var b strings.Builder
	if len(r.Pace) > 0 {
		b.WriteString("pace: each flush of each of G gateways refers to all others\n")
		fmt.Fprintf(&b, "  %3s %9s %9s %5s %8s %6s %11s %11s %7s %9s   %s\n", "", "flushes", "commits", "", "G x", "a", "payload", "between", "a", "pieces of", "")
		fmt.Fprintf(&b, "  %3s %9s %9s %5s %8s %6s %11s %11s %7s %9s   %s\n", "G", "a second", "a second", "/ G", "flushes", "cycle", "a second", "a second", "span", "payload", "ack")
		for _, p := range r.Pace {
			fmt.Fprintf(&b, "  %3d %9.1f %9.1f %5.1f %8.1f %6.2f %11s %11s %7.0f %9d   p50 %.0f   p99 %.0f ms\n", p.Gateways, p.FlushRate, p.CommitRate, p.CommitRate/float64(p.Gateways),
				p.GroupRate, p.RowsPerCycle, sizeText(uint64(float64(p.PayloadBytes)/p.Seconds)), sizeText(uint64(float64(p.PeerBytes)/p.Seconds)), p.BytesPerSpan, p.PayloadSeen, p.Ack.P50, p.Ack.P99)
		}
	}
	for _, h := range r.Hops {
		fmt.Fprintf(&b, "hop, %-22s through the sequencer %s\n  %-25s through another     %s\n  %-25s p50 + %.2f ms\n", h.Load+":", h.Here, "", h.There, "", h.Added)
	}
	for i := range r.Takeovers {
		b.WriteString(r.Takeovers[i].text())
	}
	return b.String()
}

func (a *app) benchCluster(ctx context.Context, o *clusterOptions) (*clusterReport, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	r := &clusterReport{Bench: "cluster"}
	o.made = new([]weak.Pointer[gateway.Gateway])
	runs := map[string]func(context.Context, *clusterOptions, *clusterReport) error{
		partPace: a.clusterPaces, partHop: a.clusterHops, partTakeover: a.clusterTakeovers,
	}
	for _, part := range []string{partPace, partHop, partTakeover} {
		if !slices.Contains(o.only, part) || ctx.Err() != nil {
			continue
		}
		if err := runs[part](ctx, o, r); err != nil && ctx.Err() == nil {
			return nil, fmt.Errorf("%s: %w", part, err)
		}
	}
	return r, nil
}
