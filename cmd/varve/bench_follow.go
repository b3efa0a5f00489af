package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"time"
	"weak"

	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/bolttable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/filestore"
)

// followReport is how long records took to followers, and what a PUT and a commit took in that time.
type followReport struct {
	tailReport
	FlushAge     float64   `json:"flush_age_ms"`
	CycleSpacing float64   `json:"cycle_spacing_ms"`
	Put          quantiles `json:"put"`    // of segments
	Commit       quantiles `json:"commit"` // the table write
	// What is left of the arrival, divided by PUT and table write. At the median a record waits half of the flush age
	// and of the cycle spacing, at the 99th percentile the whole.
	P50 float64 `json:"p50_ratio"`
	P99 float64 `json:"p99_ratio"`
}

func (r *followReport) conclude() {
	waits := r.FlushAge + r.CycleSpacing
	over := func(arrival, wait, calls float64) float64 {
		if calls == 0 {
			return 0
		}
		return max(0, arrival-wait) / calls
	}
	r.P50 = over(r.Arrival.P50, waits/2, r.Put.P50+r.Commit.P50)
	r.P99 = over(r.Arrival.P99, waits, r.Put.P99+r.Commit.P99)
}

// partFollow has a gateway in this process, so that each PUT and each table write is timed.
func partFollow(ctx context.Context, a *app, o *allOptions) (_ any, _ []figure, err error) {
	co := clusterOptions{segments: o.segments, metadata: o.metadata, flush: bucketPace, lease: 5 * time.Second, made: new([]weak.Pointer[gateway.Gateway])}
	f, err := a.newFleet(ctx, &co)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if o.segments == "" {
		dir, remove, err := o.scratch()
		if err != nil {
			return nil, nil, err
		}
		f.clean = append(f.clean, remove)
		if err := f.useFiles(dir); err != nil {
			return nil, nil, err
		}
	}
	puts, commits := newLatencies(), newLatencies()
	f.store = segments.Observe(f.store, segments.Observer{End: func(op segments.Op, n int64, took time.Duration, err error) {
		if op == segments.OpPut && n > kib && err == nil { // not the notes of a start
			puts.add(took)
		}
	}})
	f.table = metadata.Observe(f.table, func(c metadata.Observation) {
		if c.Op == metadata.OpPut && c.Err == nil && strings.HasPrefix(c.Key.Partition, "journal/") {
			commits.add(c.Duration)
		}
	})
	if err := f.grow(ctx, 1); err != nil {
		return nil, nil, err
	}
	own := *a
	own.servers = []string{f.members[0].url}
	c, err := own.connect()
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	topic, err := openTopic(ctx, c, "", 8)
	if err != nil {
		return nil, nil, err
	}
	tail, err := own.benchTail(ctx, c, topic, &consumeOptions{followers: 4, producers: 128, rate: 200, recordSize: kib, acks: "committed",
		duration: pickSize(o, 30*time.Second, time.Second)})
	if err != nil {
		return nil, nil, err
	}
	r := &followReport{tailReport: *tail, FlushAge: ms(co.flush), CycleSpacing: ms(co.flush / 5), Put: puts.quantiles(), Commit: commits.quantiles()}
	r.conclude()
	return r, []figure{
		atMost("arrival p50, less half of flush age and cycle spacing", r.P50, 1.5, "x (PUT + table write), p50"),
		atMost("arrival p99, less flush age and cycle spacing", r.P99, 1.5, "x (PUT + table write), p99"),
		told("arrival p50", r.Arrival.P50, "ms"),
		told("arrival p99", r.Arrival.P99, "ms"),
		told("PUT p50", r.Put.P50, "ms"),
		told("PUT p99", r.Put.P99, "ms"),
		told("table write p50", r.Commit.P50, "ms"),
		told("table write p99", r.Commit.P99, "ms"),
		atMost("records that did not arrive", float64(r.Missing), 0, ""),
	}, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// useFiles puts a fleet, which has no gateway yet, on files and the embedded table.
func (f *fleet) useFiles(dir string) error {
	store, err := filestore.Open(filepath.Join(dir, "segments"))
	if err != nil {
		return err
	}
	table, err := bolttable.Open(filepath.Join(dir, "metadata.db"), bolttable.Options{})
	if err != nil {
		return err
	}
	f.store, f.table, f.delay = store, table, 0
	// The table is closed before its folder goes.
	f.clean = append([]func() error{table.Close}, f.clean...)
	return nil
}
