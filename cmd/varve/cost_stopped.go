package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
)

// costStopped tells what topics store, by the table of a gateway that is stopped. Counters it has none.
func (a *app) costStopped(ctx context.Context, dir, topic string, prices bill.Prices) (err error) {
	data, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	l := location{scheme: schemeBolt, path: filepath.Join(data, "metadata.db")}
	if _, err := os.Stat(l.path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no %s: no gateway has had its table there", l.path)
	}
	table, closer, err := openTable(ctx, l)
	if err != nil {
		advice := tableAdvice(err, l)
		if errors.Is(err, metadata.ErrUnavailable) {
			advice = "ask the gateway that runs on it: leave --data away"
		}
		return unusable(err, "the table", advice)
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	topics := metadata.NewTopics(table)
	var list []*metadata.Topic
	if topic != "" {
		t, err := topics.Get(ctx, topic)
		if err != nil {
			return err
		}
		list = []*metadata.Topic{t}
	} else if list, err = topics.List(ctx, "", "", 0); err != nil {
		return err
	}
	a.notef("counters are in the memory of a gateway that runs, and here is none: what was used is not known, only what is stored")
	return a.printStored(ctx, table, list, &prices)
}

// uncountedJSON is a costJSON without what only counters tell: null, since 0 would be a claim.
type uncountedJSON struct {
	costJSON
	AppendedBytes   *uint64  `json:"appended_bytes"`
	AppendedRecords *uint64  `json:"appended_records"`
	PutBytes        *uint64  `json:"put_bytes"`
	Money           *float64 `json:"money"`
	Driver          *string  `json:"driver"`
	Advice          *string  `json:"advice"`
	Billed          *bool    `json:"billed"`
}

func (a *app) printStored(ctx context.Context, table metadata.Table, topics []*metadata.Topic, prices *bill.Prices) error {
	out := newTable(a.stdout, "TOPIC", "STORED", prices.Currency+" A MONTH")
	journals := metadata.NewJournals(table)
	for _, t := range topics {
		var bytes int64
		for n := range t.Partitions {
			v, _, err := journals.View(ctx, metadata.PartitionID{Topic: t.ID, Number: n})
			if err != nil {
				return err
			}
			bytes += v.Bytes
		}
		month := prices.StoredMonth(bytes)
		if !a.json() {
			out.row(t.Name, storedText(&bytes), moneyText(month))
			continue
		}
		line := costJSON{Kind: "topic", Topic: t.Name, Items: []costItemJSON{}, Currency: prices.Currency,
			StoredBytes: &bytes, MoneyPerMonth: &month, PricesAsOf: prices.AsOf, Gateways: []costGatewayJSON{}}
		if err := printJSON(a.stdout, uncountedJSON{costJSON: line}); err != nil {
			return err
		}
	}
	return out.flushUnless(a.json())
}
