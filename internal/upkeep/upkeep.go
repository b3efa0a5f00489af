// Package upkeep puts together what looks after the log beside a gateway: merging, compaction by key, retention, the removal
// of deleted topics, the collection of garbage. Packages gateway and compactor do not know each other; varve serve and the
// simulated cluster run the same thing.
package upkeep

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
)

// Config has the paces of it all; zero values are the defaults.
type Config struct {
	// Merging is nil where others merge.
	Merging   *compactor.Config
	Retention compactor.RetentionConfig
	Removal   compactor.RemovalConfig
	// Collecting has what a collector needs filled in by New, but for its numbers.
	Collecting compactor.CollectConfig
	Log        *slog.Logger
	// Meters registers metrics; nil: none.
	Meters prometheus.Registerer
}

// Upkeep runs beside a gateway, from when it serves.
type Upkeep struct {
	parts   []func(context.Context)
	running sync.WaitGroup
	end     context.CancelFunc
}

// New puts it together, before the gateway runs.
func New(g *gateway.Gateway, c Config) (*Upkeep, error) {
	u := &Upkeep{}
	if c.Merging != nil {
		merging, err := compactor.New(*c.Merging, compactor.Dependencies{Store: g.Store(), Table: g.Table(), Cluster: cluster{g}, Pressed: g.Pressed, Log: c.Log, Meters: c.Meters})
		if err != nil {
			return nil, err
		}
		g.UseCompactor(asked{merging})
		u.run(merging.Run)
	}
	if err := u.collect(g, c); err != nil {
		return nil, err
	}
	u.retain(g.Upkeep(), c)
	return u, nil
}

func (u *Upkeep) collect(g *gateway.Gateway, c Config) error {
	c.Collecting.Store, c.Collecting.Table, c.Collecting.Gateways, c.Collecting.Log = g.Store(), g.Table(), g, c.Log
	collector, err := compactor.NewCollector(c.Collecting)
	if err != nil {
		return err
	}
	if c.Meters != nil {
		collector.Register(c.Meters)
	}
	g.CollectBy(func(ctx context.Context, r *varvev1.CollectRequest) (*varvev1.CollectResponse, error) {
		report, err := collector.Collect(ctx, compactor.CollectOptions{DryRun: r.GetDryRun(), Force: r.GetForce(), Wait: r.GetWait()})
		if err != nil {
			return nil, err
		}
		return CollectionMessage(report), nil
	})
	u.run(func(ctx context.Context) error { return collector.Run(ctx, g) })
	return nil
}

func (u *Upkeep) retain(g *gateway.Upkeep, c Config) {
	c.Retention.Log, c.Removal.Log = c.Log, c.Log
	retention := compactor.NewRetention(c.Retention, g, g.Topics())
	g.OnCommit(retention.Committed)
	removal := compactor.NewRemoval(c.Removal, g.Table(), g, g.Topics())
	changed := func() {
		retention.Changed()
		removal.Changed()
	}
	g.OnCatalog(changed)
	u.run(retention.Run)
	u.run(removal.Run)
	u.run(func(ctx context.Context) error { return g.Members(ctx, changed) })
}

func (u *Upkeep) run(part func(context.Context) error) {
	u.parts = append(u.parts, func(ctx context.Context) { _ = part(ctx) }) // it ends when it is told to
}

// Start begins, once the gateway serves. It ends with ctx: a drain waits for nothing of it.
func (u *Upkeep) Start(ctx context.Context) {
	ctx, u.end = context.WithCancel(ctx)
	for _, part := range u.parts {
		u.running.Go(func() { part(ctx) })
	}
}

// Stop ends it, if it began, and waits for that.
func (u *Upkeep) Stop() {
	if u.end != nil {
		u.end()
		u.running.Wait()
	}
}

// cluster is a gateway as its compactor sees it.
type cluster struct{ *gateway.Gateway }

// View implements compactor.Cluster.
func (c cluster) View(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	return c.MergeView(ctx, id)
}

// Topic implements compactor.Cluster.
func (c cluster) Topic(ctx context.Context, name string) (*metadata.Topic, error) {
	return c.Upkeep().Topics().Refresh(ctx, name)
}

// Clock implements compactor.Cluster.
func (c cluster) Clock() time.Time { return c.Upkeep().Clock() }

// asked is a compactor as its gateway sees it.
type asked struct{ *compactor.Compactor }

// Compact implements gateway.Compactor.
func (c asked) Compact(ctx context.Context, topic string, dryRun bool) (*varvev1.CompactReport, error) {
	r, err := c.Compactor.Compact(ctx, topic, dryRun)
	if err != nil {
		return nil, err
	}
	out := &varvev1.CompactReport{Partitions: int64(r.Partitions), Merged: int64(r.Merged), Segments: int64(r.Segments), Bytes: r.Bytes,
		Entries: int64(r.Entries), Into: int64(r.Into), Moved: int64(r.Moved), Failed: int64(r.Failed), Dropped: r.Dropped}
	for _, a := range r.SetAside {
		out.SetAside = append(out.SetAside, &varvev1.DamagedSpan{Topic: a.Topic, Partition: a.Partition, FirstOffset: a.First, EndOffset: a.End,
			Object: a.Object, Problem: a.Problem})
	}
	return out, nil
}

// CollectionMessage is what a collection came to, for the API.
func CollectionMessage(r *compactor.Collection) *varvev1.CollectResponse {
	m := &varvev1.CollectResponse{ClusterId: r.ClusterID, DryRun: r.DryRun, Objects: r.Objects, ObjectBytes: r.ObjectBytes, Named: r.Named,
		Kept: make(map[string]int64), Deleted: r.Deleted, DeletedBytes: r.DeletedBytes, Rows: r.Rows, RowsWaiting: r.RowsWaiting, Gateways: r.Gateways, Refusal: r.Refusal}
	for why, n := range r.Kept {
		m.Kept[string(why)] = n
	}
	for _, id := range r.Unasked {
		m.Unasked = append(m.Unasked, string(id))
	}
	for _, id := range r.Unclear {
		m.Unclear = append(m.Unclear, id.String())
	}
	return m
}
