package main

import (
	"bufio"
	"context"
	"fmt"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
)

// outputBuffer is how many bytes cat writes at once.
const outputBuffer = 256 << 10

// catFlags are those of cat, as given.
type catFlags struct {
	partitions           []int32
	from, until, between string
	format               string
	maxRecords, maxBytes int64
}

func newCatCommand(a *app) *cobra.Command {
	var f catFlags
	cmd := &cobra.Command{
		Use:   "cat TOPIC",
		Short: "Print the records of a topic, and end",
		Long: `Prints the records that are in a topic now, and ends.

Several partitions are merged by timestamp (ties by partition), each partition in offset order. Values are
printed one a line; -f takes kcat's letters (` + formatLetters + `) and \n \t \r \\ \xHH, and prints no newline of its own.`,
		Example: `  varve cat quakes
  varve cat quakes -p 0 --from 34305339 --max-bytes 5000
  varve cat quakes --from @2018-02-07T01:00:00Z --until @2018-02-07T02:00:00Z -o json
  varve cat flights --between 2001-01-13T14:00:00Z,2001-01-13T15:00:00Z -f '%T %k %s\n'
  varve cat quakes --from -10`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveNoFileComp),
	}
	flags := cmd.Flags()
	flags.Int32SliceVarP(&f.partitions, "partition", "p", nil, "only this partition `N` (repeatable)")
	flags.StringVar(&f.from, "from", "earliest", "first record: a `PLACE`")
	flags.StringVar(&f.until, "until", "latest", "end, exclusive: a `PLACE`")
	flags.StringVar(&f.between, "between", "", "`T1,T2`: only records with T1 <= timestamp < T2, whatever their order in the log")
	flags.Int64Var(&f.maxRecords, "max-records", 0, "end after `N` records (0: all)")
	flags.Int64Var(&f.maxBytes, "max-bytes", 0, "end before keys and values pass `N` bytes, but after one record (0: all)")
	flags.StringVarP(&f.format, "format", "f", "", "how to print a record")
	completeWith(cmd, "from", "earliest", "latest")
	completeWith(cmd, "until", "earliest", "latest")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		format, err := a.recordFormat(f.format, cmd.Flags().Changed("format"))
		if err != nil {
			return err
		}
		selection, err := f.parse(a, args[0])
		if err != nil {
			return err
		}
		return a.cat(cmd.Context(), selection, format)
	}
	return cmd
}

// selection is what to print.
type selection struct {
	consumer client.ConsumerConfig
	// The numbers of plain offsets, or -1.
	from, until int64
	// Limits; 0 is none.
	maxRecords, maxBytes int64
	// arrived counts the records that came; printing is set while whoever reads the output holds cat up.
	arrived  atomic.Int64
	printing atomic.Bool
}

func (s *selection) waiting() (arrived int64, waits bool) {
	return s.arrived.Load(), !s.printing.Load()
}

func (f *catFlags) parse(a *app, topic string) (*selection, error) {
	now := a.now()
	s := &selection{
		consumer:   client.ConsumerConfig{Topic: topic, Partitions: f.partitions, Order: client.ByTimestamp},
		maxRecords: f.maxRecords, maxBytes: f.maxBytes,
	}
	var err error
	if s.consumer.Start, s.from, err = parsePlace(f.from, now); err != nil {
		return s, usagef("--from: %v", err)
	}
	if s.consumer.End, s.until, err = parsePlace(f.until, now); err != nil {
		return s, usagef("--until: %v", err)
	}
	if f.between != "" {
		if s.consumer.Between, err = parseRange(f.between, now); err != nil {
			return s, usagef("--between: %v", err)
		}
	}
	if f.maxRecords < 0 || f.maxBytes < 0 {
		return s, usagef("--max-records and --max-bytes: must not be negative")
	}
	return s, checkPartitions(f.partitions)
}

// checkPartitions refuses numbers that no topic has, and doubles.
func checkPartitions(partitions []int32) error {
	seen := make(map[int32]bool)
	for _, p := range partitions {
		if p < 0 {
			return usagef("--partition %d: partitions count from 0", p)
		}
		if seen[p] {
			return usagef("--partition %d: is given twice", p)
		}
		seen[p] = true
	}
	return nil
}

func (a *app) cat(ctx context.Context, s *selection, format recordFormat) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := a.settle(ctx, c, s); err != nil {
		return err
	}
	k, err := c.NewConsumer(s.consumer)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(a.stdout, outputBuffer)
	stop := a.watchStalls(s.waiting)
	printed, err := s.print(ctx, k, out, format)
	stop()
	if flushed := out.Flush(); flushed != nil {
		return flushed
	}
	if ctx.Err() != nil {
		a.notef("interrupted after %d records", printed)
		return errReported
	}
	return err
}

// settle looks at plain offsets, which mean nothing where a partition does not reach them: they are refused
// in partitions that were asked for by number, and noted in others. An end beyond the end is the end, since cat does
// not wait.
func (a *app) settle(ctx context.Context, c *client.Client, s *selection) error {
	if s.from < 0 && s.until < 0 {
		return nil
	}
	ends, err := c.ListOffsets(ctx, s.consumer.Topic, client.LatestOffset(), s.consumer.Partitions...)
	if err != nil {
		return err
	}
	beyond := false
	for _, e := range ends {
		if s.from > e.EndOffset {
			if len(s.consumer.Partitions) > 0 {
				return fmt.Errorf("%s/%d: --from %d is past the end, %d", s.consumer.Topic, e.Partition, s.from, e.EndOffset)
			}
			a.notef("%s/%d: --from %d is past the end, %d: nothing of it is printed", s.consumer.Topic, e.Partition, s.from, e.EndOffset)
		}
		beyond = beyond || s.until > e.EndOffset
	}
	if beyond {
		s.consumer.End = client.Latest()
	}
	return nil
}

// print returns how many records it wrote.
func (s *selection) print(ctx context.Context, k *client.Consumer, out *bufio.Writer, format recordFormat) (printed int64, err error) {
	var bytes int64
	var line []byte
	for r, err := range k.Records(ctx) {
		if err != nil {
			return printed, err
		}
		s.arrived.Add(1)
		if s.until >= 0 && r.Offset >= s.until {
			continue
		}
		bytes += int64(len(r.Key) + len(r.Value))
		if s.maxBytes > 0 && bytes > s.maxBytes && printed > 0 {
			return printed, nil
		}
		line = format(line[:0], &r)
		s.printing.Store(true)
		if _, err := out.Write(line); err != nil {
			return printed, err
		}
		s.printing.Store(false)
		printed++
		if printed == s.maxRecords {
			return printed, nil
		}
	}
	return printed, nil
}
