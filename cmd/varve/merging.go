package main

import (
	"context"
	"sync"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
)

// roleAll is what --role says of a process that does everything.
const roleAll = "all"

// roleOf is what a gateway's row says.
func roleOf(flag string) string {
	if flag == roleAll {
		return metadata.RoleAll
	}
	return flag
}

// merging is the compactor of a process; nil when it merges nothing.
type merging struct {
	compactor *compactor.Compactor
	ctx       context.Context
	cancel    context.CancelFunc
	running   sync.WaitGroup
}

// newMerging makes the compactor that works beside a gateway until ctx ends, if it is to have one.
func newMerging(ctx context.Context, p *plan, g *gateway.Gateway) (*merging, error) {
	if p.config.Role == metadata.RoleGateway {
		return nil, nil
	}
	c, err := compactor.New(p.merging, compactor.Dependencies{Store: g.Store(), Table: g.Table(), Cluster: mergingCluster{g}, Log: p.log, Meters: g.Registry()})
	if err != nil {
		return nil, err
	}
	g.UseCompactor(mergingGateway{c})
	m := &merging{compactor: c}
	m.ctx, m.cancel = context.WithCancel(ctx)
	return m, nil
}

func (m *merging) start() {
	if m != nil {
		m.running.Go(func() { m.compactor.Run(m.ctx) })
	}
}

// stop ends it, also before ctx ends, and waits for that.
func (m *merging) stop() {
	if m != nil {
		m.cancel()
		m.running.Wait()
	}
}

// mergingCluster is a gateway as its compactor sees it.
type mergingCluster struct{ *gateway.Gateway }

// View implements compactor.Cluster.
func (c mergingCluster) View(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	return c.MergeView(ctx, id)
}

// mergingGateway is a compactor as its gateway sees it.
type mergingGateway struct{ *compactor.Compactor }

// Compact implements gateway.Compactor.
func (c mergingGateway) Compact(ctx context.Context, topic string, dryRun bool) (*varvev1.CompactReport, error) {
	r, err := c.Compactor.Compact(ctx, topic, dryRun)
	if err != nil {
		return nil, err
	}
	out := &varvev1.CompactReport{Partitions: int64(r.Partitions), Merged: int64(r.Merged), Segments: int64(r.Segments), Bytes: r.Bytes,
		Entries: int64(r.Entries), Into: int64(r.Into), Moved: int64(r.Moved), Failed: int64(r.Failed)}
	for _, a := range r.SetAside {
		out.SetAside = append(out.SetAside, &varvev1.DamagedSpan{Topic: a.Topic, Partition: a.Partition, FirstOffset: a.First, EndOffset: a.End,
			Object: a.Object, Problem: a.Problem})
	}
	return out, nil
}
