package main

import (
	"bufio"
	"context"
	"sync"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
)

// maxTail bounds the records that tail holds in memory before it prints them.
const maxTail = 1_000_000

type tailFlags struct {
	partitions []int32
	count      int
	format     string
}

func newTailCommand(a *app) *cobra.Command {
	var f tailFlags
	cmd := &cobra.Command{
		Use:   "tail TOPIC",
		Short: "Print the newest records of a topic, and then those that come, until Ctrl-C",
		Long: `Prints the N newest records over all partitions, in the order of cat (by timestamp, each partition in
offset order), and then records as they are committed. Ctrl-C ends it, with exit status 0.

-f takes kcat's letters: see 'varve cat --help'.`,
		Example: `  varve tail quakes
  varve tail quakes -n 0 -o json
  varve tail flights -p 2 -f '%p:%o %k %s\n'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveNoFileComp),
	}
	flags := cmd.Flags()
	flags.Int32SliceVarP(&f.partitions, "partition", "p", nil, "only this partition `N` (repeatable)")
	flags.IntVarP(&f.count, "records", "n", 10, "begin with the `N` newest records")
	flags.StringVarP(&f.format, "format", "f", "", "how to print a record")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		format, err := a.recordFormat(f.format, cmd.Flags().Changed("format"))
		if err != nil {
			return err
		}
		if f.count < 0 || f.count > maxTail {
			return usagef("--records %d: want 0 to %d", f.count, maxTail)
		}
		if err := checkPartitions(f.partitions); err != nil {
			return err
		}
		return a.tail(cmd.Context(), args[0], f, format)
	}
	return cmd
}

func (a *app) tail(ctx context.Context, topic string, f tailFlags, format recordFormat) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	follow, newest, err := newestRecords(ctx, c, client.ConsumerConfig{Topic: topic, Partitions: f.partitions}, f.count)
	if err != nil {
		return endOfTail(ctx, err)
	}
	k, err := c.NewConsumer(follow)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := newPromptWriter(bufio.NewWriterSize(a.stdout, outputBuffer), cancel)
	defer out.close()
	var line []byte
	for i := range newest {
		line = format(line[:0], &newest[i])
		out.write(line)
	}
	newest = nil
	for r, err := range k.Records(ctx) {
		if err != nil {
			return endOfTail(ctx, err)
		}
		line = format(line[:0], &r)
		out.write(line)
	}
	return nil
}

// endOfTail: Ctrl-C is how a tail ends, and no failure.
func endOfTail(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	if cause := context.Cause(ctx); cause != errInterrupted && cause != context.Canceled {
		return cause
	}
	return nil
}

// newestRecords returns the n newest records in the order of cat, and what to read from there on.
//
// The end of each partition is asked for first and read up to, or a little beyond: following begins after the
// last record seen, so that no record is missed or printed twice.
func newestRecords(ctx context.Context, c *client.Client, cfg client.ConsumerConfig, n int) (client.ConsumerConfig, []client.Record, error) {
	ends, err := c.ListOffsets(ctx, cfg.Topic, client.LatestOffset(), cfg.Partitions...)
	if err != nil {
		return cfg, nil, err
	}
	cfg.Starts = make(map[int32]client.Place, len(ends))
	for _, e := range ends {
		cfg.Starts[e.Partition] = client.At(e.EndOffset)
	}
	if n == 0 {
		return cfg, nil, nil
	}
	// Where key compaction took records out, fewer than n lie among the last n offsets.
	for back := int64(n); ; back *= 8 {
		newest, next, err := newestAmong(ctx, c, cfg, n, back)
		if err != nil {
			return cfg, nil, err
		}
		all := true
		for _, e := range ends {
			cfg.Starts[e.Partition] = client.At(max(e.EndOffset, next[e.Partition]))
			all = all && e.EndOffset-e.StartOffset <= back
		}
		if len(newest) == n || all {
			return cfg, newest, nil
		}
	}
}

// newestAmong returns the n newest records of the last offsets of each partition, in the order of cat, and what
// follows the last one in each.
func newestAmong(ctx context.Context, c *client.Client, cfg client.ConsumerConfig, n int, offsets int64) (ring []client.Record, next map[int32]int64, err error) {
	k, err := c.NewConsumer(client.ConsumerConfig{
		Topic: cfg.Topic, Partitions: cfg.Partitions,
		Start: client.BeforeEnd(offsets), End: client.Latest(), Order: client.ByTimestamp,
	})
	if err != nil {
		return nil, nil, err
	}
	seen := 0
	next = make(map[int32]int64)
	for r, err := range k.Records(ctx) {
		if err != nil {
			return nil, nil, err
		}
		next[r.Partition] = r.Offset + 1
		if len(ring) < n {
			ring = append(ring, r)
		} else {
			ring[seen%n] = r
		}
		seen++
	}
	if len(ring) < n {
		return ring, next, nil
	}
	at := seen % n
	return append(ring[at:len(ring):len(ring)], ring[:at]...), next, nil
}

// promptWriter writes as soon as it can, and what comes while it writes, at once: a lone record is
// printed at once, a flood in large pieces.
type promptWriter struct {
	mu     sync.Mutex
	out    *bufio.Writer
	wake   chan struct{}
	done   sync.WaitGroup
	failed context.CancelCauseFunc
}

// newPromptWriter starts a goroutine, which close ends. A failure to write is told to failed.
func newPromptWriter(out *bufio.Writer, failed context.CancelCauseFunc) *promptWriter {
	p := &promptWriter{out: out, wake: make(chan struct{}, 1), failed: failed}
	p.done.Go(func() {
		for range p.wake {
			p.flush()
		}
	})
	return p
}

func (p *promptWriter) write(line []byte) {
	p.mu.Lock()
	_, err := p.out.Write(line)
	p.mu.Unlock()
	if err != nil {
		p.failed(err)
	}
	select {
	case p.wake <- struct{}{}:
	default: // It will wake anyway.
	}
}

func (p *promptWriter) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.out.Flush(); err != nil {
		p.failed(err)
	}
}

func (p *promptWriter) close() {
	close(p.wake)
	p.done.Wait()
	p.flush()
}
