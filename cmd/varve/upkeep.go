package main

import (
	"context"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/gateway"
)

// upkeep is what looks after the log beside a gateway. Gateway and compactor do not know each other: they
// are put together here.
type upkeep struct {
	parts []func(context.Context) error
	group *errgroup.Group
	end   context.CancelFunc
}

// newUpkeep puts it together, before the gateway runs.
func newUpkeep(g *gateway.Gateway, log *slog.Logger) *upkeep {
	u := g.Upkeep()
	retention := compactor.NewRetention(compactor.RetentionConfig{Log: log}, u, u.Topics())
	u.OnCommit(retention.Committed)
	removal := compactor.NewRemoval(compactor.RemovalConfig{Log: log}, u.Table(), u.Mine)
	changed := func() {
		retention.Changed()
		removal.Changed()
	}
	u.OnCatalog(changed)
	return &upkeep{parts: []func(context.Context) error{
		retention.Run, removal.Run,
		func(ctx context.Context) error { return u.Members(ctx, changed) },
	}}
}

// start begins when the gateway serves. It ends with ctx: a drain waits for nothing of it.
func (u *upkeep) start(ctx context.Context) {
	ctx, u.end = context.WithCancel(ctx)
	u.group, ctx = errgroup.WithContext(ctx)
	for _, part := range u.parts {
		u.group.Go(func() error { return part(ctx) })
	}
}

// stop ends it, if it began, and waits for that.
func (u *upkeep) stop() {
	if u.group == nil {
		return
	}
	u.end()
	u.group.Wait() // why it ended is known
}
