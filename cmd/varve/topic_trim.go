package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/varvelog/varve/client"
)

// foreseen is what a trim of one partition would do.
type foreseen struct {
	partition      int32
	start, to, end int64 // log start now and then, log end
	// records that go: where key compaction took some out of the entry that is cut, at most so many. bytes of the index entries that go
	// whole: those of the one that is cut stay.
	records, bytes int64
}

// foreseeTrim tells what a trim to a place would remove, as of now. offset is that of the place, or -1.
func (a *app) foreseeTrim(ctx context.Context, c *client.Client, topic, to string, offset int64, partitions []int32) ([]foreseen, error) {
	query := client.LatestOffset()
	if strings.HasPrefix(to, "@") {
		t, err := parseTime(to[1:], a.now())
		if err != nil {
			return nil, err
		}
		query = client.OffsetAtOrAfter(t)
	}
	answers, err := c.ListOffsets(ctx, topic, query.Linearizable(), partitions...)
	if err != nil {
		return nil, err
	}
	var list []foreseen
	for _, p := range answers {
		f := foreseen{partition: p.Partition, start: p.StartOffset, to: p.EndOffset, end: p.EndOffset}
		switch before := int64(0); {
		case strings.HasPrefix(to, "@"):
			if p.Found {
				f.to = p.Offset
			}
		case offset >= 0:
			f.to = offset
		case to != "latest":
			if _, err := fmt.Sscanf(to, "-%d", &before); err != nil {
				return nil, err
			}
			f.to = p.EndOffset - before
		}
		if f.to > f.end {
			return nil, fmt.Errorf("%s/%d: cannot trim to offset %d: the log holds offsets %d to %d (end, exclusive)", topic, f.partition, f.to, f.start, f.end)
		}
		f.to = max(f.to, f.start)
		if err := f.measure(ctx, c, topic); err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	return list, nil
}

// measure adds up what lies below the new start.
func (f *foreseen) measure(ctx context.Context, c *client.Client, topic string) error {
	if f.to == f.start {
		return nil
	}
	for s, err := range c.Segments(ctx, topic, f.partition, f.start) {
		if err != nil || s.FirstOffset >= f.to {
			return err
		}
		if s.EndOffset <= f.to {
			f.bytes += s.Length
		}
		f.records += min(s.RecordCount, min(s.EndOffset, f.to)-max(s.FirstOffset, f.start))
	}
	return nil
}

// printForeseen tells what a trim would remove.
func (a *app) printForeseen(topic string, list []foreseen) error {
	table := newTable(a.stdout, "PARTITION", "START", "NEW START", "END", "RECORDS", "BYTES")
	var records, bytes int64
	for _, f := range list {
		records, bytes = records+f.records, bytes+f.bytes
		if !a.json() {
			table.row(f.partition, f.start, f.to, f.end, f.records, f.bytes)
			continue
		}
		if err := printJSON(a.stdout, struct {
			Topic       string `json:"topic"`
			Partition   int32  `json:"partition"`
			StartOffset int64  `json:"start_offset"`
			NewStart    int64  `json:"new_start_offset"`
			EndOffset   int64  `json:"end_offset"`
			Records     int64  `json:"records"`
			Bytes       int64  `json:"bytes"`
		}{topic, f.partition, f.start, f.to, f.end, f.records, f.bytes}); err != nil {
			return err
		}
	}
	if err := table.flushUnless(a.json()); err != nil {
		return err
	}
	a.notef("%s of %d bytes would be removed from topic %s now; nothing was changed", count(records, "record"), bytes, topic)
	return nil
}
