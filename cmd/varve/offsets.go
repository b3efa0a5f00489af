package main

import (
	"bufio"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
)

// partitionOffset is the JSON of one answer.
type partitionOffset struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Found     bool   `json:"found"`
	// Offset and Timestamp are -1 when there is none.
	Offset      int64 `json:"offset"`
	Timestamp   int64 `json:"timestamp"`
	StartOffset int64 `json:"start_offset"`
	EndOffset   int64 `json:"end_offset"`
	// Linearizable: no append that was acknowledged before the question is missing.
	Linearizable bool `json:"linearizable"`
}

func newOffsetsCommand(a *app) *cobra.Command {
	var partitions []int32
	var at, before string
	var linearizable bool
	cmd := &cobra.Command{
		Use:   "offsets TOPIC",
		Short: "Tell the offset at a time, the first one, the next one",
		Long: `Prints topic:partition:offset, one line a partition.

  --time T              the first record, in offset order, whose timestamp is at or after T
  --before T            the record just before that one, or the last one when there is none: everything
                        up to it is older than T
  --time latest         the offset that the next record will get
  --time earliest       the first offset that is still readable
  --time max-timestamp  the first record that carries the largest timestamp

A gateway may answer as of some milliseconds ago, when others write too. With --linearizable it looks at the
table first: every append that was acknowledged before is counted.

Partitions without an answer are left out, with a note on standard error; -o json has them all.`,
		Example: `  varve offsets quakes
  varve offsets quakes --time 2018-02-07T01:00:00Z
  varve offsets quakes --before 1517965200000
  varve offsets quakes --time -2h -o json
  varve offsets ledger -p 0 --linearizable`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveNoFileComp),
	}
	flags := cmd.Flags()
	flags.Int32SliceVarP(&partitions, "partition", "p", nil, "only this partition `N` (repeatable)")
	flags.StringVar(&at, "time", "latest", "latest, earliest, max-timestamp, or a `TIME`")
	flags.StringVar(&before, "before", "", "the offset just before this `TIME`")
	flags.BoolVar(&linearizable, "linearizable", false, "count every append that was acknowledged before")
	excludeEachOther(cmd, "time", "before")
	completeWith(cmd, "time", "latest", "earliest", "max-timestamp")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		query, missing, err := a.offsetQuery(at, before)
		if err != nil {
			return err
		}
		if err := checkPartitions(partitions); err != nil {
			return err
		}
		if linearizable {
			query = query.Linearizable()
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		offsets, err := c.ListOffsets(cmd.Context(), args[0], query, partitions...)
		if err != nil {
			return err
		}
		for _, o := range offsets {
			if linearizable && !o.Linearizable {
				return errors.New("the gateway gives no linearizable answers; update it")
			}
		}
		return a.printOffsets(args[0], offsets, missing)
	}
	return cmd
}

// offsetQuery also says what is missing in a partition without an answer.
func (a *app) offsetQuery(at, before string) (query client.OffsetQuery, missing string, err error) {
	now := a.now()
	if before != "" {
		t, err := parseTime(before, now)
		if err != nil {
			return query, "", usagef("--before: %v", err)
		}
		return client.OffsetBefore(t), "no record before " + before, nil
	}
	switch at {
	case "latest":
		return client.LatestOffset(), "no end", nil
	case "earliest":
		return client.EarliestOffset(), "no start", nil
	case "max-timestamp":
		return client.MaxTimestampOffset(), "no record", nil
	}
	t, err := parseTime(at, now)
	if err != nil {
		return query, "", usagef("--time: %v; or latest, earliest, max-timestamp", err)
	}
	return client.OffsetAtOrAfter(t), "no record at or after " + at, nil
}

func (a *app) printOffsets(topic string, offsets []client.PartitionOffset, missing string) error {
	out := bufio.NewWriter(a.stdout)
	var notes []string
	for _, o := range offsets {
		switch {
		case a.json():
			if err := printJSON(out, partitionOffset{
				Topic: topic, Partition: o.Partition, Found: o.Found, Offset: o.Offset,
				Timestamp: millis(o.Timestamp), StartOffset: o.StartOffset, EndOffset: o.EndOffset,
				Linearizable: o.Linearizable,
			}); err != nil {
				return err
			}
		case o.Found:
			fmt.Fprintf(out, "%s:%d:%d\n", topic, o.Partition, o.Offset)
		case o.StartOffset == o.EndOffset:
			notes = append(notes, fmt.Sprintf("%s/%d: %s: the partition is empty, its next offset is %d", topic, o.Partition, missing, o.EndOffset))
		default:
			notes = append(notes, fmt.Sprintf("%s/%d: %s among offsets %d to %d", topic, o.Partition, missing, o.StartOffset, o.EndOffset-1))
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	for _, n := range notes {
		a.notef("%s", n)
	}
	return nil
}
