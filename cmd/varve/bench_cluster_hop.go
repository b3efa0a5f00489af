package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
)

// hopCount compares appends through the gateway that sequences a partition with those through another one.
type hopCount struct {
	Load  string    `json:"load"`
	Here  quantiles `json:"through_sequencer"`
	There quantiles `json:"through_another"`
	Added float64   `json:"added_p50_ms"`
	// CycleSpacing is part of what the other way may take longer, in ms.
	CycleSpacing float64 `json:"cycle_spacing_ms"`
}

func (a *app) clusterHops(ctx context.Context, o *clusterOptions, r *clusterReport) (err error) {
	f, err := a.newFleet(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.grow(ctx, 2); err != nil {
		return err
	}
	const topic = "hop"
	id, err := f.createTopic(ctx, topic, o.partitions)
	if err != nil {
		return err
	}
	all := upTo(o.partitions)
	if err := f.appendAll(ctx, topic, all); err != nil {
		return err
	}
	home := f.shares(id, o.partitions)[0]
	if len(home) == 0 {
		return usagef("--partitions %d: the first of two gateways got none of them", o.partitions)
	}
	request, err := oneEach(topic, home[:1], 2*markSize)
	if err != nil {
		return err
	}
	lone := newHop("lone appends", request)
	if err := lone.alone(ctx, o, f); err != nil {
		return err
	}
	load, err := oneEach(topic, all, int(o.recordSize))
	if err != nil {
		return err
	}
	busy := newHop("among other load", request)
	if err := busy.among(ctx, o, f, load); err != nil {
		return err
	}
	r.Hops = append(r.Hops, lone.conclude(o), busy.conclude(o))
	return nil
}

// hop is one comparison under way.
type hop struct {
	load    string
	request []byte
	times   [2]*latencies // through the sequencer, through the other one
}

func newHop(load string, request []byte) *hop {
	return &hop{load, request, [2]*latencies{newLatencies(), newLatencies()}}
}

func (h *hop) conclude(o *clusterOptions) hopCount {
	c := hopCount{Load: h.load, Here: h.times[0].quantiles(), There: h.times[1].quantiles(), CycleSpacing: o.flush.Seconds() * 1000 / 5}
	c.Added = c.There.P50 - c.Here.P50
	return c
}

func (h *hop) once(ctx context.Context, f *fleet, through int) error {
	began := time.Now()
	err := f.members[through].produce(ctx, h.request)
	if err == nil {
		h.times[through].add(time.Since(began))
	}
	return err
}

// alone appends in turns, so seldom that each finds a quiet gateway and a quiet sequencer.
func (h *hop) alone(ctx context.Context, o *clusterOptions, f *fleet) error {
	for i := range 2 * o.samples {
		if !sleep(ctx, o.flush*2/3) {
			return context.Cause(ctx)
		}
		if err := h.once(ctx, f, i%2); err != nil {
			return err
		}
	}
	return nil
}

// among appends through both at random moments, while both are busy with a load.
func (h *hop) among(ctx context.Context, o *clusterOptions, f *fleet, request []byte) error {
	load := startPaced(ctx, f, request)
	const samplers = 8
	end := time.Now().Add(o.duration)
	group, ctx := errgroup.WithContext(ctx)
	for i := range 2 * samplers {
		group.Go(func() error {
			for time.Now().Before(end) && sleep(ctx, rand.N(o.flush)) {
				if err := h.once(ctx, f, i%2); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return errors.Join(group.Wait(), load.stop())
}
