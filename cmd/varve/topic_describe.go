package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/client"
)

func newTopicDescribeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "describe TOPIC",
		Short:             "Show a topic: every setting, every partition",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			d, err := c.DescribeTopicUsage(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return printJSON(a.stdout, descriptionJSONOf(d))
			}
			return a.printDescription(d)
		},
	}
}

type settingJSON struct {
	Name      string `json:"name"`
	Value     string `json:"value"`
	IsDefault bool   `json:"is_default"`
	Doc       string `json:"doc"`
}

type partitionJSON struct {
	Partition   int32  `json:"partition"`
	StartOffset int64  `json:"start_offset"`
	EndOffset   int64  `json:"end_offset"`
	Bytes       int64  `json:"bytes"`
	Gateway     string `json:"gateway"`
	Epoch       uint64 `json:"epoch"`
	// MaxTimestamp is -1 when the partition is empty.
	MaxTimestamp int64 `json:"max_timestamp"`
	// FencingToken is empty when there is none.
	FencingToken string `json:"fencing_token"`
	// RetentionHolder is the largest timestamp among the records that hold the log start, -1 when nothing is held by time.
	RetentionHolder int64 `json:"retention_holder"`
}

// descriptionJSON has the members of a listed topic, and beside them what only describe knows.
type descriptionJSON struct {
	topicJSON
	Settings      []settingJSON   `json:"settings"`
	PartitionInfo []partitionJSON `json:"partition_info"`
	// Cost is what cost TOPIC says, by the default prices; null when the gateway does not tell.
	Cost *costJSON `json:"cost"`
}

func descriptionJSONOf(d client.TopicDescription) descriptionJSON {
	out := descriptionJSON{topicJSON: topicJSONOf(d.Topic), Settings: []settingJSON{}, PartitionInfo: []partitionJSON{}}
	for _, s := range d.Settings {
		out.Settings = append(out.Settings, settingJSON(s))
	}
	for _, p := range d.PartitionInfo {
		out.PartitionInfo = append(out.PartitionInfo, partitionJSON{
			p.Partition, p.StartOffset, p.EndOffset, p.Bytes, p.Gateway, p.Epoch, millis(p.MaxTimestamp), p.FencingToken, millis(p.RetentionHolder),
		})
	}
	if prices := bill.DefaultPrices(); len(d.Cost.GetTopics()) > 0 {
		cost := costJSONOf(costLines(d.Cost, &prices)[0], d.Cost, &prices, settingOf(d.Cost))
		out.Cost = &cost
	}
	return out
}

func (a *app) printDescription(d client.TopicDescription) error {
	facts := newTable(a.stdout)
	facts.row("topic", d.Name)
	facts.row("id", d.ID)
	facts.row("state", d.State)
	facts.row("created", showTime(d.CreatedAt))
	facts.row("partitions", d.Partitions)
	if text := costFact(d.Cost); text != "" {
		facts.row("cost", text)
	}
	if err := facts.w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	settings := newTable(a.stdout, "SETTING", "VALUE", "", "MEANING")
	for _, s := range d.Settings {
		mark := "set"
		if s.IsDefault {
			mark = "default"
		}
		settings.row(s.Name, s.Value, mark, s.Doc)
	}
	if err := settings.w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	partitions := newTable(a.stdout, "PARTITION", "START", "END", "BYTES", "GATEWAY", "EPOCH", "MAX TIMESTAMP", "TOKEN", "HELD BY")
	for _, p := range d.PartitionInfo {
		partitions.row(p.Partition, p.StartOffset, p.EndOffset, p.Bytes, orDash(p.Gateway), p.Epoch, showTime(p.MaxTimestamp), orDash(p.FencingToken), showTime(p.RetentionHolder))
	}
	return partitions.w.Flush()
}

// orDash shows that there is nothing.
func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
