package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
)

func newTopicCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "topic",
		Short: "Create, list, describe, alter, delete, trim and fence topics",
		RunE:  needsVerb,
	}
	cmd.AddCommand(
		newTopicCreateCommand(a),
		newTopicListCommand(a),
		newTopicDescribeCommand(a),
		newTopicAlterCommand(a),
		newTopicDeleteCommand(a),
		newTopicTrimCommand(a),
		newTopicFenceCommand(a),
	)
	return cmd
}

// topicJSON is a topic as create, list and alter print it.
type topicJSON struct {
	Name       string            `json:"name"`
	ID         string            `json:"id"`
	Partitions int32             `json:"partitions"`
	Config     map[string]string `json:"config"`
	State      string            `json:"state"`
	CreatedAt  int64             `json:"created_at"`
}

func topicJSONOf(t client.Topic) topicJSON {
	config := t.Config
	if config == nil {
		config = map[string]string{}
	}
	return topicJSON{t.Name, t.ID, t.Partitions, config, t.State, millis(t.CreatedAt)}
}

// parseConfig reads --config k=v.
func parseConfig(settings []string) (map[string]string, error) {
	config := make(map[string]string, len(settings))
	for _, s := range settings {
		name, value, found := strings.Cut(s, "=")
		if !found || name == "" {
			return nil, usagef("--config %q: want NAME=VALUE, for example retention.ms=86400000", s)
		}
		if _, twice := config[name]; twice {
			return nil, usagef("--config %s: is given twice", name)
		}
		config[name] = value
	}
	return config, nil
}

// settingNames completes --config and --unset.
var settingNames = []string{
	"retention.ms", "retention.bytes", "cleanup.policy", "timestamp.type", "max.message.bytes", "timestamp.after.max.ms",
	"delete.retention.ms", "min.compaction.lag.ms", "min.cleanable.dirty.ratio",
}

func completeSettings(cmd *cobra.Command, flag, suffix string) {
	var values []string
	for _, n := range settingNames {
		values = append(values, n+suffix)
	}
	completeWith(cmd, flag, values...)
}

func newTopicCreateCommand(a *app) *cobra.Command {
	var partitions int32
	var settings []string
	var ifNotExists bool
	cmd := &cobra.Command{
		Use:   "create TOPIC",
		Short: "Make a topic",
		Example: `  varve topic create hello-world --partitions 4
  varve topic create clicks --config retention.ms=604800000 --config timestamp.type=append`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().Int32Var(&partitions, "partitions", 1, "how many partitions, `N`")
	cmd.Flags().StringArrayVar(&settings, "config", nil, "a setting, `NAME=VALUE` (repeatable): "+strings.Join(settingNames, ", "))
	cmd.Flags().BoolVar(&ifNotExists, "if-not-exists", false, "succeed, changing nothing, when the topic is there")
	completeSettings(cmd, "config", "=")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		config, err := parseConfig(settings)
		if err != nil {
			return err
		}
		if partitions < 1 {
			return usagef("--partitions %d: a topic has at least 1", partitions)
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		t, created, err := c.CreateTopic(cmd.Context(), args[0], client.CreateTopicOptions{
			Partitions: partitions, Config: config, IfNotExists: ifNotExists,
		})
		if errors.Is(err, client.ErrTopicExists) {
			return fmt.Errorf("%w; --if-not-exists makes that a success", err)
		}
		if err != nil {
			return err
		}
		if a.json() {
			return printJSON(a.stdout, struct {
				topicJSON
				Created bool `json:"created"`
			}{topicJSONOf(t), created})
		}
		if !created {
			a.notef("topic %s is there already, with %s", t.Name, count(int64(t.Partitions), "partition"))
			return nil
		}
		a.notef("created topic %s with %s", t.Name, count(int64(t.Partitions), "partition"))
		return nil
	}
	return cmd
}

// count writes a number with its noun.
func count(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func newTopicListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "list [PREFIX]",
		Short:             "List the topics, or those whose names begin with PREFIX",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefix := strings.Join(args, "")
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			table := newTable(a.stdout, "TOPIC", "PARTITIONS", "STATE", "CREATED", "CONFIG")
			for t, err := range c.Topics(cmd.Context(), prefix) {
				if err != nil {
					return err // half a list would look like a whole one
				}
				if a.json() {
					if err := printJSON(a.stdout, topicJSONOf(t)); err != nil {
						return err
					}
					continue
				}
				table.row(t.Name, t.Partitions, t.State, showTime(t.CreatedAt), showConfig(t.Config))
			}
			return table.flushUnless(a.json())
		},
	}
}

func showConfig(config map[string]string) string {
	var parts []string
	for k, v := range config {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}

// showTime writes milliseconds precisely and in UTC, as TIME takes it.
func showTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

func newTopicDeleteCommand(a *app) *cobra.Command {
	var ifExists bool
	cmd := &cobra.Command{
		Use:               "delete TOPIC",
		Short:             "Delete a topic and everything in it; asks nothing",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveNoFileComp),
	}
	cmd.Flags().BoolVar(&ifExists, "if-exists", false, "succeed when the topic is not there")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		there := true
		if ifExists { // a deletion itself does not tell
			_, err := c.DescribeTopic(cmd.Context(), args[0])
			there = !errors.Is(err, client.ErrTopicNotFound)
		}
		if err := c.DeleteTopic(cmd.Context(), args[0], ifExists); err != nil {
			return err
		}
		if a.json() {
			return printJSON(a.stdout, struct {
				Name    string `json:"name"`
				Deleted bool   `json:"deleted"`
			}{args[0], there})
		}
		if there {
			a.notef("topic %s is deleted", args[0])
		} else {
			a.notef("there is no topic %s: nothing was deleted", args[0])
		}
		return nil
	}
	return cmd
}

func newTopicAlterCommand(a *app) *cobra.Command {
	var partitions int32
	var settings, unset []string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "alter TOPIC",
		Short: "Change a topic's settings, or give it more partitions",
		Long: `Changes a topic's settings, or gives it more partitions. A topic never loses partitions, and more of them move
keys: records of a key written before stay where they are.

--dry-run changes nothing and tells what the new retention would remove at once, and, where cleanup.policy says compact, among which
offsets compaction by key will take out records.`,
		Example: `  varve topic alter clicks --config retention.ms=86400000 --dry-run
  varve topic alter clicks --config retention.ms=86400000
  varve topic alter clicks --unset retention.ms
  varve topic alter clicks --partitions 8`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveNoFileComp),
	}
	cmd.Flags().Int32Var(&partitions, "partitions", 0, "grow to `N` partitions")
	cmd.Flags().StringArrayVar(&settings, "config", nil, "a setting, `NAME=VALUE` (repeatable)")
	cmd.Flags().StringArrayVar(&unset, "unset", nil, "the `NAME` of a setting to bring back to its default (repeatable)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; tell what would be removed")
	completeSettings(cmd, "config", "=")
	completeSettings(cmd, "unset", "")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		config, err := parseConfig(settings)
		if err != nil {
			return err
		}
		if partitions < 0 {
			return usagef("--partitions %d: must not be negative", partitions)
		}
		if partitions == 0 && len(config) == 0 && len(unset) == 0 {
			return usagef("nothing to change: give --partitions, --config or --unset")
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		options := client.AlterTopicOptions{Partitions: partitions, Set: config, Unset: unset}
		if dryRun {
			t, removals, err := c.TryAlterTopic(cmd.Context(), args[0], options)
			if err != nil {
				return err
			}
			if err := a.printRemovals(t, removals); err != nil {
				return err
			}
			return a.noteSuperseded(cmd.Context(), c, t)
		}
		t, err := c.AlterTopic(cmd.Context(), args[0], options)
		if err != nil {
			return err
		}
		if a.json() {
			return printJSON(a.stdout, topicJSONOf(t))
		}
		a.notef("topic %s has %s%s", t.Name, count(int64(t.Partitions), "partition"), prefixed(", ", showConfig(t.Config)))
		return nil
	}
	return cmd
}

// printRemovals tells what a topic's new configuration would remove.
func (a *app) printRemovals(t client.Topic, removals []client.Removal) error {
	table := newTable(a.stdout, "PARTITION", "FROM", "TO", "RECORDS", "BYTES", "LAST TIMESTAMP")
	var records, bytes int64
	for _, r := range removals {
		records, bytes = records+r.Records, bytes+r.Bytes
		if !a.json() {
			table.row(r.Partition, r.StartOffset, r.EndOffset-1, r.Records, r.Bytes, showTime(r.LastTimestamp))
			continue
		}
		if err := printJSON(a.stdout, struct {
			Topic         string `json:"topic"`
			Partition     int32  `json:"partition"`
			StartOffset   int64  `json:"start_offset"`
			EndOffset     int64  `json:"end_offset"`
			Records       int64  `json:"records"`
			Bytes         int64  `json:"bytes"`
			LastTimestamp int64  `json:"last_timestamp"`
		}{t.Name, r.Partition, r.StartOffset, r.EndOffset, r.Records, r.Bytes, millis(r.LastTimestamp)}); err != nil {
			return err
		}
	}
	if len(removals) == 0 {
		a.notef("retention would remove nothing from topic %s now; nothing was changed", t.Name)
		return nil
	}
	if err := table.flushUnless(a.json()); err != nil {
		return err
	}
	a.notef("%s of %d bytes would be removed from topic %s now; nothing was changed", count(records, "record"), bytes, t.Name)
	return nil
}

// noteSuperseded tells what compaction by key may take out of a topic as it would be. How many records that are, only a pass
// that reads all of them knows.
func (a *app) noteSuperseded(ctx context.Context, c *client.Client, t client.Topic) error {
	if !strings.Contains(t.Config["cleanup.policy"], "compact") {
		return nil
	}
	ends, err := c.ListOffsets(ctx, t.Name, client.LatestOffset())
	if err != nil {
		return err
	}
	for _, e := range ends {
		if e.EndOffset-e.StartOffset > 1 {
			a.notef("%s/%d: compaction by key takes out records that have a newer one of their key, among offsets %d to %d; how many, 'varve compact %s --wait' tells once it is done",
				t.Name, e.Partition, e.StartOffset, e.EndOffset-2, t.Name)
		}
	}
	return nil
}

// prefixed puts a prefix before text, if there is any.
func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

func newTopicTrimCommand(a *app) *cobra.Command {
	var partitions []int32
	var to string
	var yes, dryRun bool
	cmd := &cobra.Command{
		Use:   "trim TOPIC --to PLACE",
		Short: "Move the start of a topic up: what lies before can no longer be read",
		Long: `Moves the start of a topic up, in all partitions or in some: what lies before can no longer be read.

A time that none of a partition's records reaches leaves it empty. So one that lies in the future is mostly a mistake, and is refused
without --yes; --to latest empties partitions on purpose.

--dry-run changes nothing and tells which offset PLACE is in each partition now, and what would go: records, and the bytes of index entries that
go whole.`,
		Example: `  varve topic trim clicks --to @-7d --dry-run
  varve topic trim clicks --to @-7d
  varve topic trim clicks -p 0 --to 34305339
  varve topic trim clicks --to latest`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveNoFileComp),
	}
	cmd.Flags().Int32SliceVarP(&partitions, "partition", "p", nil, "only this partition `N` (repeatable)")
	cmd.Flags().StringVar(&to, "to", "", "`PLACE` of the first record to keep: an offset (with -p), -N, @TIME or latest")
	cmd.Flags().BoolVar(&yes, "yes", false, "trim to a time in the future, too")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; tell what would be removed")
	completeWith(cmd, "to", "latest")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		place, offset, err := parsePlace(to, a.now())
		switch {
		case to == "":
			return usagef("--to is missing: an offset (with -p), -N, @TIME or latest")
		case err != nil:
			return usagef("--to: %v", err)
		case place == client.Earliest():
			return usagef("--to earliest: would trim nothing")
		case offset >= 0 && len(partitions) == 0:
			return usagef("--to %d: an offset needs -p, since each partition has its own", offset)
		}
		if err := checkPartitions(partitions); err != nil {
			return err
		}
		if t, err := parseTime(strings.TrimPrefix(to, "@"), a.now()); strings.HasPrefix(to, "@") && err == nil && t.After(a.now()) && !yes && !dryRun {
			return usagef("--to %s: lies in the future, so that most likely everything would go; to empty partitions say --to latest, or --yes if some records are dated later", to)
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		if dryRun {
			list, err := a.foreseeTrim(cmd.Context(), c, args[0], to, offset, partitions)
			if err != nil {
				return err
			}
			return a.printForeseen(args[0], list)
		}
		results, err := c.TrimTopic(cmd.Context(), args[0], place, partitions...)
		if err != nil {
			return err
		}
		return a.printTrims(args[0], results)
	}
	return cmd
}

func (a *app) printTrims(topic string, results []client.TrimResult) error {
	table := newTable(a.stdout, "PARTITION", "START", "END")
	for _, r := range results {
		if !a.json() {
			table.row(r.Partition, r.StartOffset, r.EndOffset)
			continue
		}
		if err := printJSON(a.stdout, struct {
			Topic       string `json:"topic"`
			Partition   int32  `json:"partition"`
			StartOffset int64  `json:"start_offset"`
			EndOffset   int64  `json:"end_offset"`
		}{topic, r.Partition, r.StartOffset, r.EndOffset}); err != nil {
			return err
		}
	}
	return table.flushUnless(a.json())
}
