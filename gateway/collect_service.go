package gateway

import (
	"context"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/metadata"
)

// A collector of garbage runs beside a gateway and asks it what it needs: it is no part of it.

// CollectFunc makes a collection of garbage.
type CollectFunc func(context.Context, *varvev1.CollectRequest) (*varvev1.CollectResponse, error)

// CollectBy says who collects when ClusterService.Collect is called. Call it before Run.
func (g *Gateway) CollectBy(collect CollectFunc) { g.collect = collect }

// Beat writes this gateway's row, with its floors as they are: one that has its table for itself writes it for nobody else.
// Others beat anyway, and what their rows say is never too high.
func (g *Gateway) Beat(ctx context.Context) error {
	if !g.config.Exclusive {
		return nil
	}
	return g.tenure.Load().own.write(ctx, "")
}

// First says whether what is to be done once in the cluster is up to this gateway.
func (g *Gateway) First() bool { return g.members.first() }

// Litter counts what may have left garbage in the cluster, as far as it is known here: after a beat of who decided it.
// changed is closed when there is more, or when another gateway may come first.
func (g *Gateway) Litter() (count uint64, changed <-chan struct{}) {
	g.litter.mu.Lock()
	defer g.litter.mu.Unlock()
	return g.litter.count, g.litter.changed
}

// Acknowledge returns once a gateway, this one or another that lives, knows of each gateway that was closed when this was called,
// and has settled what it judged before it knew. An error: it cannot be asked.
func (g *Gateway) Acknowledge(ctx context.Context, id metadata.GatewayID) error {
	switch t := g.tenure.Load(); {
	case id == t.id:
		return t.acknowledge(ctx)
	case g.config.Exclusive:
		return nil // the table's lock is ours: that one has ended
	}
	return g.peers.acknowledge(ctx, id)
}

// acknowledge reads the gateways' rows and waits until what was judged before is settled.
func (t *tenure) acknowledge(ctx context.Context) error {
	if err := t.g.members.refresh(ctx); err != nil {
		return err
	}
	return t.sequencer.settled(ctx)
}

// Collect has garbage collected.
func (s *clusterService) Collect(ctx context.Context, r *varvev1.CollectRequest, stream varvev1connect.ClusterServiceCollectServerStream) error {
	if s.g.collect == nil {
		return refuse(connect.CodeUnimplemented, reasonInvalid, "this gateway collects no garbage")
	}
	// It may take minutes: whoever waits knows by the headers that it goes on.
	if err := stream.SendHeaders(); err != nil {
		return err
	}
	answer, err := s.g.collect(ctx, r)
	if err != nil {
		return err
	}
	return stream.Send(answer)
}
