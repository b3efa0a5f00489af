package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
)

// paceCount is what so many gateways did in a while, each with flushes at its pace.
type paceCount struct {
	Gateways int     `json:"gateways"`
	Seconds  float64 `json:"seconds"`
	Requests int64   `json:"requests"`
	Flushes  uint64  `json:"flushes"`
	Spans    uint64  `json:"flushed_spans"`
	Cycles   uint64  `json:"cycles"`
	// Counts are of all gateways, seen from beneath them.
	Counts       counts `json:"counts"`
	PayloadBytes uint64 `json:"payload_bytes"`
	PeerBytes    uint64 `json:"peer_bytes"`
	// PayloadSeen is how many pieces of records crossed between gateways; PayloadSent how many came from
	// producers, which shows that they are noticed.
	PayloadSeen uint64 `json:"payload_seen_between_gateways"`
	PayloadSent uint64 `json:"payload_seen_from_producers"`

	FlushRate  float64 `json:"flushes_per_second"`
	CommitRate float64 `json:"commit_writes_per_second"`
	// GroupRate is what it would be if each flush had a commit of its own at each sequencer.
	GroupRate    float64   `json:"flushes_times_gateways_per_second"`
	RowsPerCycle float64   `json:"commit_writes_per_cycle"`
	BytesPerSpan float64   `json:"peer_bytes_per_span"` // of those that another gateway sequences
	Ack          quantiles `json:"ack"`
}

func (a *app) clusterPaces(ctx context.Context, o *clusterOptions, r *clusterReport) error {
	for _, n := range o.gateways {
		p, err := a.clusterPace(ctx, o, n)
		if err != nil {
			return err
		}
		a.notef("%d gateways: %.1f flushes and %.1f commit writes a second", n, p.FlushRate, p.CommitRate)
		r.Pace = append(r.Pace, *p)
	}
	return nil
}

func (a *app) clusterPace(ctx context.Context, o *clusterOptions, n int) (p *paceCount, err error) {
	f, err := a.newFleet(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.grow(ctx, n); err != nil {
		return nil, err
	}
	const topic = "pace"
	if _, err := f.createTopic(ctx, topic, o.partitions); err != nil {
		return nil, err
	}
	if err := f.appendAll(ctx, topic, upTo(o.partitions)); err != nil {
		return nil, err
	}
	request, err := oneEach(topic, upTo(o.partitions), int(o.recordSize))
	if err != nil {
		return nil, err
	}
	load := startPaced(ctx, f, request)
	if !sleep(ctx, 2*o.flush) {
		return nil, errors.Join(context.Cause(ctx), load.stop())
	}
	load.times.reset()
	p = &paceCount{Gateways: n}
	before, err := f.usage(ctx)
	if err != nil {
		return nil, errors.Join(err, load.stop())
	}
	start, began := f.counts(), time.Now()
	sleep(ctx, o.duration)
	p.Counts, p.Seconds = f.counts().minus(start), time.Since(began).Seconds()
	after, err := f.usage(context.WithoutCancel(ctx))
	if err := errors.Join(err, load.stop()); err != nil {
		return nil, err
	}
	p.conclude(before, after, load)
	return p, nil
}

func (p *paceCount) conclude(before, after usageSum, load *paced) {
	p.Flushes, p.Spans, p.Cycles = after.flushes-before.flushes, after.spans-before.spans, after.cycles-before.cycles
	p.PayloadBytes, p.PeerBytes = after.appended-before.appended, p.Counts[peerBytes]
	p.PayloadSeen, p.PayloadSent = p.Counts[peerPayload], p.Counts[producerSeen]
	p.Ack = load.times.quantiles()
	p.Requests = p.Ack.Count
	g := float64(p.Gateways)
	p.FlushRate, p.CommitRate = float64(p.Flushes)/p.Seconds, float64(p.Counts[commitWrites])/p.Seconds
	p.GroupRate = p.FlushRate * g
	if p.Cycles > 0 {
		p.RowsPerCycle = float64(p.Counts[commitWrites]) / float64(p.Cycles)
	}
	if abroad := float64(p.Spans) * (g - 1) / g; abroad > 0 {
		p.BytesPerSpan = float64(p.PeerBytes) / abroad
	}
}

// paced is a load on each gateway of a fleet: the same request again and again, several within the time
// between two flushes, so that whenever a flush may be there is something to flush.
type paced struct {
	times *latencies
	end   context.CancelFunc
	group *errgroup.Group
}

// Requests within a flush interval, and of one gateway that are not answered yet. A gateway whose requests all
// wait is behind its pace.
const (
	requestsAFlush = 3
	requestsOpen   = 16
)

func startPaced(ctx context.Context, f *fleet, request []byte) *paced {
	sending, end := context.WithCancel(ctx)
	group, sending := errgroup.WithContext(sending)
	p := &paced{times: newLatencies(), end: end, group: group}
	interval := f.config.FlushInterval / requestsAFlush
	answers := context.WithoutCancel(ctx)
	for _, m := range f.members {
		group.Go(func() error {
			var open errgroup.Group
			open.SetLimit(requestsOpen)
			// Gateways do not begin at once, and do not go in step.
			for sleep(sending, rand.N(2*interval)) {
				open.Go(func() error {
					began := time.Now()
					err := m.produce(answers, request)
					p.times.add(time.Since(began))
					return err
				})
			}
			return open.Wait()
		})
	}
	return p
}

// stop ends the load once all that was sent is answered.
func (p *paced) stop() error {
	p.end()
	return p.group.Wait()
}
