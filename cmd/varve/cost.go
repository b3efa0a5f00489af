package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/client"
)

// costTopics is how many topics are listed, unless all are asked for.
const costTopics = 20

type costFlags struct {
	prices      string
	all         bool
	printPrices bool
	dataDir     string
}

func newCostCommand(a *app) *cobra.Command {
	var f costFlags
	cmd := &cobra.Command{
		Use:   "cost [TOPIC]",
		Short: "Show what topics use of bucket and table, and what that costs",
		Long: `Shows what a topic, or each topic and the cluster, have used of what a cloud bills: requests to the bucket, bytes out of
it, read and write units of the table; what that costs by a list of prices, for a GiB appended too; what is stored, and
what it costs a month; and what drives it.

Counters are in the memory of the gateways, each since its start: all that live are asked, one that does not answer is
named, and those of gateways that have stopped are gone. Topics share a segment's PUT by their bytes in it, a commit by
the bytes of their changes in it. What is nobody's own (heartbeats, the catalog) is the cluster's.

Without TOPIC the ` + strconv.Itoa(costTopics) + ` topics that cost most are listed, and what is stored is left out where that takes reads of more than
10,000 partitions; --all lists all, with that. With TOPIC each thing that is billed has a line.

Prices are those of AWS at the date that --print-prices shows. --prices FILE (YAML or JSON) gives others.

With --data the folder of a gateway that is stopped is read: it has no counters, what is stored is told.`,
		Example: `  varve cost
  varve cost quakes
  varve cost --print-prices > prices.yaml
  varve cost --prices prices.yaml -o json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveNoFileComp),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.prices, "prices", "", "`FILE` of prices (default: AWS, see --print-prices)")
	flags.BoolVar(&f.all, "all", false, "list all topics, and say what all of them store")
	flags.BoolVar(&f.printPrices, "print-prices", false, "print the default prices, as a file to change")
	flags.StringVar(&f.dataDir, "data", "", "tell what is stored in this `FOLDER` of a stopped gateway (its --data)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.printPrices {
			_, err := a.stdout.Write(bill.DefaultPricesText())
			return err
		}
		prices, err := readPrices(f.prices)
		if err != nil {
			return err
		}
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		if f.dataDir != "" {
			return a.costStopped(cmd.Context(), f.dataDir, name, prices)
		}
		return a.cost(cmd.Context(), name, f.all, prices)
	}
	return cmd
}

func readPrices(path string) (bill.Prices, error) {
	if path == "" {
		return bill.DefaultPrices(), nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return bill.Prices{}, usagef("--prices: %v", err)
	}
	p, err := bill.ParsePrices(text)
	if err != nil {
		return p, usagef("--prices %s: %v; 'varve cost --print-prices' shows a whole list", path, err)
	}
	return p, nil
}

// costLine is what somebody used.
type costLine struct {
	kind   string // topic, gone, cluster, total
	name   string
	used   bill.Usage
	cost   bill.Cost
	stored *int64
}

func (a *app) cost(ctx context.Context, topic string, all bool, prices bill.Prices) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	answer, err := c.Cost(ctx, client.CostOptions{Topic: topic, All: all})
	if err != nil {
		return err
	}
	lines := costLines(answer, &prices)
	for _, g := range answer.GetGateways() {
		if g.GetError() != "" {
			a.notef("gateway %s (%s) did not answer, and what it used is missing: %s", g.GetId(), orDash(g.GetAddress()), g.GetError())
		}
	}
	if text := unbilled(answer); text != "" {
		a.notef("%s", text)
	}
	setting := settingOf(answer)
	if a.json() {
		for _, l := range lines {
			if err := printJSON(a.stdout, costJSONOf(l, answer, &prices, setting)); err != nil {
				return err
			}
		}
		return nil
	}
	if topic != "" {
		return a.printTopicCost(lines[0], answer, &prices, setting)
	}
	return a.printCosts(lines, all, answer, &prices, setting)
}

func settingOf(answer *varvev1.CostResponse) bill.Setting {
	return bill.Setting{FlushInterval: time.Duration(answer.GetFlushIntervalMs()) * time.Millisecond, SegmentBytes: answer.GetSegmentBytes()}
}

// costLines are the topics, those that cost most first, then what is left, the cluster, and all of it.
func costLines(answer *varvev1.CostResponse, prices *bill.Prices) (lines []costLine) {
	var sum bill.Usage
	var stored *int64
	for _, t := range answer.GetTopics() {
		l := costLine{kind: "topic", name: t.GetTopic(), used: usageOf(t.GetUsed()), stored: t.StoredBytes}
		if t.GetTopic() == "" {
			l.kind, l.name = "gone", "(gone)"
		}
		if t.StoredBytes != nil {
			if stored == nil {
				stored = new(int64)
			}
			*stored += t.GetStoredBytes()
		}
		lines = append(lines, l)
	}
	if answer.GetCluster() != nil {
		lines = append(lines, costLine{kind: "cluster", name: "(cluster)", used: usageOf(answer.GetCluster())})
	}
	for i := range lines {
		lines[i].cost = prices.Of(&lines[i].used)
		sum.Add(&lines[i].used)
	}
	slices.SortStableFunc(lines, func(a, b costLine) int {
		if (a.kind == "topic") != (b.kind == "topic") {
			return cmp.Compare(b2i(a.kind != "topic"), b2i(b.kind != "topic"))
		}
		if a.kind != "topic" {
			return 0
		}
		return cmp.Compare(b.cost.Total, a.cost.Total)
	})
	if answer.GetCluster() == nil {
		return lines
	}
	return append(lines, costLine{kind: "total", name: "total", used: sum, cost: prices.Of(&sum), stored: stored})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// usageOf is a usage from the words of the API.
func usageOf(m *varvev1.Used) (u bill.Usage) {
	u[bill.FlushPuts], u[bill.MergePuts], u[bill.OtherPuts], u[bill.Lists] = m.GetFlushPuts(), m.GetMergePuts(), m.GetOtherPuts(), m.GetLists()
	u[bill.ReadGets], u[bill.MergeGets], u[bill.OtherGets], u[bill.Deletes] = m.GetReadGets(), m.GetMergeGets(), m.GetOtherGets(), m.GetDeletes()
	u[bill.BytesPut], u[bill.BytesGot] = m.GetBytesPut(), m.GetBytesGot()
	u[bill.CommitUnits], u[bill.TrimUnits], u[bill.CheckpointUnits] = m.GetCommitUnits(), m.GetTrimUnits(), m.GetCheckpointUnits()
	u[bill.MergeUnits], u[bill.BeatUnits], u[bill.OtherWriteUnits] = m.GetMergeUnits(), m.GetBeatUnits(), m.GetOtherWriteUnits()
	u[bill.IndexReadUnits], u[bill.MemberReadUnits], u[bill.OtherReadUnits] = m.GetIndexReadUnits(), m.GetMemberReadUnits(), m.GetOtherReadUnits()
	u[bill.AppendedBytes], u[bill.AppendedRecords] = m.GetAppendedBytes(), m.GetAppendedRecords()
	return u
}

// unbilled says where nothing is billed, and what the figures mean then.
func unbilled(answer *varvev1.CostResponse) string {
	billed := func(scheme string) bool { return scheme == schemeS3 || scheme == schemeMinIO || scheme == schemeDynamo }
	switch bucket, table := answer.GetBucket(), answer.GetTable(); {
	case billed(bucket) && billed(table):
		return ""
	case billed(bucket):
		return fmt.Sprintf("the table is %s://: nobody bills it. Its figures are what the same would cost on DynamoDB", table)
	case billed(table):
		return fmt.Sprintf("the bucket is %s://: nobody bills it. Its figures are what the same would cost on S3", bucket)
	default:
		return fmt.Sprintf("bucket and table are %s:// and %s://: nobody bills them. The figures are what the same calls would cost on S3 and DynamoDB; "+
			"there flushes are %s apart by default, here %d ms, so the same appends make fewer", bucket, table, bucketPace, answer.GetFlushIntervalMs())
	}
}

// costFact is the cost of one topic on one line, by the default prices; empty when the gateway does not tell.
func costFact(answer *varvev1.CostResponse) string {
	if len(answer.GetTopics()) == 0 {
		return ""
	}
	prices := bill.DefaultPrices()
	l := costLines(answer, &prices)[0]
	text := moneyText(l.cost.Total) + " " + prices.Currency
	if perGiB := perGiBText(&l.cost); perGiB != "-" {
		text += ", " + perGiB + " a GiB appended"
	}
	text += fmt.Sprintf(" (%s); %s stored, %s a month", period(answer), storedText(l.stored), monthText(l.stored, &prices))
	if unbilled(answer) != "" {
		text += "; what nobody bills here is told as on S3 and DynamoDB"
	}
	return text
}

// period says what the counters cover.
func period(answer *varvev1.CostResponse) string {
	var longest int64
	answered := int64(0)
	for _, g := range answer.GetGateways() {
		if g.GetError() == "" {
			answered++
			longest = max(longest, g.GetCountedMs())
		}
	}
	return fmt.Sprintf("counted by %s, at most %s long", count(answered, "gateway"), (time.Duration(longest) * time.Millisecond).Round(time.Second))
}

func (a *app) printCosts(lines []costLine, all bool, answer *varvev1.CostResponse, prices *bill.Prices, s bill.Setting) error {
	money := prices.Currency
	t := newTable(a.stdout, "TOPIC", "APPENDED", "PUTS", "GETS", "READ", "WRITE UNITS", "READ UNITS", money, money+" A GIB", "STORED", money+" A MONTH")
	listed, topics := 0, 0
	for _, l := range lines {
		if l.kind == "topic" {
			topics++
			if listed == costTopics && !all {
				continue
			}
			listed++
		}
		u := &l.used
		t.row(l.name, sizeText(u[bill.AppendedBytes]), countText(u.Puts()), countText(u.Gets()), sizeText(u[bill.BytesGot]),
			countText(u.WriteUnits()), countText(u.ReadUnits()), moneyText(l.cost.Total), perGiBText(&l.cost), storedText(l.stored), monthText(l.stored, prices))
	}
	if err := t.w.Flush(); err != nil {
		return err
	}
	if listed < topics {
		a.notef("%d of %d topics are listed: --all lists all of them", listed, topics)
	}
	total := lines[len(lines)-1]
	if advice := total.cost.Advice(&total.used, s); advice != "" {
		fmt.Fprintf(a.stdout, "\n%s\n", advice)
	}
	a.notef("%s; prices: %s, as of %s", period(answer), prices.Source, prices.AsOf)
	return nil
}

func (a *app) printTopicCost(l costLine, answer *varvev1.CostResponse, prices *bill.Prices, s bill.Setting) error {
	money := prices.Currency
	t := newTable(a.stdout, "WHAT", "USED", money, money+" A GIB", "SHARE")
	for _, item := range l.cost.Items {
		if item.Used == 0 {
			continue
		}
		used := countText(item.Used)
		if item.Bytes {
			used = humanize.IBytes(uint64(item.Used))
		}
		part := bill.Cost{Total: item.Money, Appended: l.cost.Appended}
		share := "-"
		if l.cost.Total > 0 {
			share = fmt.Sprintf("%.0f %%", 100*item.Money/l.cost.Total)
		}
		t.row(item.Name, used, moneyText(item.Money), perGiBText(&part), share)
	}
	t.row("uploaded", sizeText(l.used[bill.BytesPut]), "", "", "")
	t.row("all of it", sizeText(l.used[bill.AppendedBytes])+" appended", moneyText(l.cost.Total), perGiBText(&l.cost), "")
	t.row("stored", storedText(l.stored), monthText(l.stored, prices)+" a month", "", "")
	if err := t.w.Flush(); err != nil {
		return err
	}
	if advice := l.cost.Advice(&l.used, s); advice != "" {
		fmt.Fprintf(a.stdout, "\n%s\n", advice)
	}
	a.notef("%s; prices: %s, as of %s", period(answer), prices.Source, prices.AsOf)
	return nil
}

// countText shows a number of requests or units, of which topics may have parts.
func countText(n float64) string {
	if n >= 100 || n == 0 {
		return humanize.Comma(int64(n + 0.5))
	}
	return strconv.FormatFloat(n, 'g', 3, 64)
}

// moneyText shows small amounts with three digits.
func moneyText(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 100:
		return humanize.CommafWithDigits(v, 2)
	case v < 0.000001:
		return "<0.000001"
	case v < 0.01:
		return strconv.FormatFloat(v, 'f', 6, 64)
	}
	return strconv.FormatFloat(v, 'f', 4, 64)
}

// perGiBText is what a GiB costs, where enough was appended to say so.
func perGiBText(c *bill.Cost) string {
	v, ok := c.PerGiB()
	if !ok || c.Appended < mib {
		return "-"
	}
	return moneyText(v)
}

func storedText(n *int64) string {
	if n == nil {
		return "-"
	}
	return sizeText(uint64(*n))
}

func monthText(n *int64, prices *bill.Prices) string {
	if n == nil {
		return "-"
	}
	return moneyText(prices.StoredMonth(*n))
}

// costItemJSON is one thing that is billed.
type costItemJSON struct {
	Name string  `json:"name"`
	Used float64 `json:"used"`
	// Bytes: they are bytes, not requests or units of the table.
	Bytes bool    `json:"bytes"`
	Money float64 `json:"money"`
}

// costJSON is one line of cost -o json.
type costJSON struct {
	Kind            string         `json:"kind"` // topic, gone, cluster or total
	Topic           string         `json:"topic"`
	AppendedBytes   uint64         `json:"appended_bytes"`
	AppendedRecords uint64         `json:"appended_records"`
	PutBytes        uint64         `json:"put_bytes"`
	Items           []costItemJSON `json:"items"`
	Currency        string         `json:"currency"`
	Money           float64        `json:"money"`
	// MoneyPerGiB is null when nothing was appended, StoredBytes where it was not asked for.
	MoneyPerGiB   *float64 `json:"money_per_gib"`
	StoredBytes   *int64   `json:"stored_bytes"`
	MoneyPerMonth *float64 `json:"stored_money_per_month"`
	Driver        string   `json:"driver"`
	Advice        string   `json:"advice"`
	PricesAsOf    string   `json:"prices_as_of"`
	// Billed: somebody bills this bucket and this table.
	Billed   bool              `json:"billed"`
	Gateways []costGatewayJSON `json:"gateways"`
}

type costGatewayJSON struct {
	ID        string `json:"id"`
	Address   string `json:"address"`
	Since     int64  `json:"since"` // ms; 0: it did not answer
	CountedMs int64  `json:"counted_ms"`
	Error     string `json:"error"`
}

func costJSONOf(l costLine, answer *varvev1.CostResponse, prices *bill.Prices, s bill.Setting) costJSON {
	out := costJSON{Kind: l.kind, AppendedBytes: l.used[bill.AppendedBytes], AppendedRecords: l.used[bill.AppendedRecords], PutBytes: l.used[bill.BytesPut],
		Items: []costItemJSON{}, Currency: prices.Currency, Money: l.cost.Total, StoredBytes: l.stored, Advice: l.cost.Advice(&l.used, s),
		PricesAsOf: prices.AsOf, Billed: unbilled(answer) == "", Gateways: []costGatewayJSON{}}
	if l.kind == "topic" {
		out.Topic = l.name
	}
	for _, item := range l.cost.Items {
		out.Items = append(out.Items, costItemJSON{item.Name, item.Used, item.Bytes, item.Money})
	}
	if v, ok := l.cost.PerGiB(); ok {
		out.MoneyPerGiB = &v
	}
	if l.stored != nil {
		month := prices.StoredMonth(*l.stored)
		out.MoneyPerMonth = &month
	}
	if driver, ok := l.cost.Driver(); ok {
		out.Driver = driver.Name
	}
	for _, g := range answer.GetGateways() {
		out.Gateways = append(out.Gateways, costGatewayJSON{g.GetId(), g.GetAddress(), g.GetSince(), g.GetCountedMs(), g.GetError()})
	}
	return out
}
