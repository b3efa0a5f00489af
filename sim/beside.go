package sim

import (
	"context"
	"log/slog"
	"sync"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
)

// beside is what runs beside a gateway in its process: merging, retention, the collection of garbage.
type beside struct {
	parts   []func(context.Context)
	running sync.WaitGroup
	end     context.CancelFunc
}

// newBeside makes it, before the gateway runs; with paces of seconds.
func newBeside(o Options, g *gateway.Gateway, log *slog.Logger) (*beside, error) {
	b := &beside{}
	if !o.Upkeep {
		return b, nil
	}
	c, err := compactor.New(compactor.Config{TargetBytes: 64 << 10, Age: o.MergeAge, AgainAfter: 2 * o.MergeAge, BytesPerSecond: -1},
		compactor.Dependencies{Store: g.Store(), Table: g.Table(), Cluster: besideCluster{g}, Log: log})
	if err != nil {
		return nil, err
	}
	g.UseCompactor(besideGateway{c})
	collector, err := compactor.NewCollector(compactor.CollectConfig{Store: g.Store(), Table: g.Table(), Gateways: g, Grace: o.Grace, Interval: 2 * time.Second, MaxShare: 1, Log: log})
	if err != nil {
		return nil, err
	}
	u := g.Upkeep()
	retention := compactor.NewRetention(compactor.RetentionConfig{Pace: time.Second, SizePace: time.Second, Log: log}, u, u.Topics())
	u.OnCommit(retention.Committed)
	removal := compactor.NewRemoval(compactor.RemovalConfig{Delay: 2 * time.Second, Retry: time.Second, Log: log}, u.Table(), u.Mine)
	changed := func() {
		retention.Changed()
		removal.Changed()
	}
	u.OnCatalog(changed)
	b.parts = []func(context.Context){
		func(ctx context.Context) { _ = c.Run(ctx) },
		func(ctx context.Context) { _ = collector.Run(ctx, g) },
		func(ctx context.Context) { _ = retention.Run(ctx) },
		func(ctx context.Context) { _ = removal.Run(ctx) },
		func(ctx context.Context) { _ = u.Members(ctx, changed) },
	}
	return b, nil
}

func (b *beside) start(ctx context.Context) {
	ctx, b.end = context.WithCancel(ctx)
	for _, part := range b.parts {
		b.running.Go(func() { part(ctx) })
	}
}

func (b *beside) stop() {
	if b.end != nil {
		b.end()
		b.running.Wait()
	}
}

// besideCluster is a gateway as its compactor sees it.
type besideCluster struct{ *gateway.Gateway }

// View implements compactor.Cluster.
func (c besideCluster) View(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
	return c.MergeView(ctx, id)
}

// besideGateway is a compactor as its gateway sees it.
type besideGateway struct{ *compactor.Compactor }

// Compact implements gateway.Compactor.
func (c besideGateway) Compact(ctx context.Context, topic string, dryRun bool) (*varvev1.CompactReport, error) {
	_, err := c.Compactor.Compact(ctx, topic, dryRun)
	return &varvev1.CompactReport{}, err
}
